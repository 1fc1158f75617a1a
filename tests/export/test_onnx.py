import collections
import dataclasses
import logging
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from helpers import tiny_checkpoint, tiny_images, tiny_model

from dyvit_deploy.artifacts.facts import METADATA_KEY, ArtifactFacts
from dyvit_deploy.config import KeepRequest, LoadConfig, PruneConfig
from dyvit_deploy.data.preprocess import normalise, scale_and_shift
from dyvit_deploy.errors import ArtifactError, ConfigError, ExportError
from dyvit_deploy.export import onnx as export_module
from dyvit_deploy.export.config import FORM_NAMES, ExportConfig
from dyvit_deploy.export.onnx import check_k, export_model, export_onnx
from dyvit_deploy.model.build import resolve
from dyvit_deploy.model.dynamicvit import DynamicViT
from dyvit_deploy.runners.open import open_runner


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Checkpoint and ONNX with tokens of the tiny model."""
    folder = tmp_path_factory.mktemp("export")
    checkpoint = tiny_checkpoint(folder)
    report = export_onnx(checkpoint, folder / "tiny.onnx", ExportConfig(with_tokens=True))
    return checkpoint, folder / "tiny.onnx", report


def operators(path):
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


def test_the_interface_is_the_promised_one(exported):
    graph = onnx.load(exported[1]).graph
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
              for v in (*graph.input, *graph.output)}
    assert shapes == {"images": ["batch", 3, 32, 32], "logits": ["batch", 5], "kept_0": ["batch", 8],
                      "kept_1": ["batch", 4], "kept_2": ["batch", 2]}


def test_counts_are_constant_and_nothing_of_training_is_left(exported):
    proto = onnx.load(exported[1])
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in proto.graph.initializer}
    topk = [node for node in proto.graph.node if node.op_type == "TopK"]
    assert [constants[node.input[1]].tolist() for node in topk] == [[8], [4], [2]]
    assert all({a.name: a.i for a in node.attribute}["sorted"] == 1 for node in topk)
    found = operators(exported[1])
    assert (found["GatherND"], found["GatherElements"]) == (3, 3)          # tokens and their numbers, per stage
    assert not {"LogSoftmax", "Log", "Exp", "Where", "ScatterElements", "Attention"} & set(operators(exported[1]))
    assert {o.domain: o.version for o in proto.opset_import} == {"": 20}


def test_metadata_tell_where_the_graph_comes_from(exported):
    checkpoint, path, report = exported
    [text] = [p.value for p in onnx.load(path).metadata_props if p.key == METADATA_KEY]
    facts = ArtifactFacts.from_json(text, str(path))
    assert facts == report.facts
    assert facts.keep_counts == (8, 4, 2) and facts.parent["file"] == checkpoint.name
    assert {"torch", "timm", "onnx", "onnxscript", "dyvit-deploy", "python"} <= facts.versions.keys()


def test_the_file_holds_no_path_of_the_exporting_machine(exported):
    content = exported[1].read_bytes()
    assert b"site-packages" not in content and b"/dyvit_deploy/" not in content and b"File \"" not in content


def test_rewrites_can_be_left_out(exported, tmp_path):
    report = export_onnx(exported[0], tmp_path / "m.onnx", ExportConfig(with_tokens=True, without=("all",),
                                                                        gather="elements"))
    found = operators(report.path)
    assert report.facts.forms == () and (found["GatherND"], found["GatherElements"]) == (0, 6)
    assert set(exported[2].facts.forms) == set(FORM_NAMES) - {"fold-batch-norm"}  # a linear stem has none
    with open_runner(exported[1]) as ours, open_runner(report.path) as plain:
        images = tiny_images(3).numpy()
        assert np.allclose(ours.infer(images).logits, plain.infer(images).logits, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_size_gives_what_the_model_gives(exported, batch):
    model, _ = tiny_model(0.5)
    images = tiny_images(batch)
    with open_runner(exported[1]) as runner, torch.inference_mode():
        out, expected = runner.infer(images.numpy()), model.forward_pruned(images)
    assert np.allclose(out.logits, expected.logits.numpy(), atol=1e-5)
    assert all(np.array_equal(k, e.numpy()) for k, e in zip(out.kept, expected.kept))


@pytest.mark.parametrize("changes", [dict(builder="lvvit"), dict(stem="conv"), dict(image_size=(48, 32))])
def test_every_family_exports(tmp_path, changes):
    model, facts = tiny_model(0.5, **changes)
    export_model(model, facts, tmp_path / "m.onnx")
    images = torch.randn(3, 3, *facts.model.image_size)
    with open_runner(tmp_path / "m.onnx") as runner, torch.inference_mode():
        assert np.allclose(runner.infer(images.numpy()).logits, model(images).numpy(), atol=1e-5)
        assert runner.infer(images.numpy()).kept == ()


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "vit_base_patch16_siglip_224"])
def test_timm_models_export_with_their_prefix_tokens_and_pooling(tmp_path, name):
    config = resolve(f"timm:{name}")
    torch.manual_seed(0)
    model = DynamicViT(config, PruneConfig.from_ratio(0.5, (1,))).eval()
    model.backbone.blocks = model.backbone.blocks[:2]                      # two blocks show it as well as twelve
    export_model(model, ArtifactFacts(config, model.prune), tmp_path / "m.onnx")
    images = tiny_images(2, 224)
    with open_runner(tmp_path / "m.onnx") as runner, torch.inference_mode():
        assert np.allclose(runner.infer(images.numpy()).logits, model(images).numpy(), atol=1e-4)


def test_uint8_input_normalises_inside(exported, tmp_path):
    checkpoint, path, _ = exported
    export_onnx(checkpoint, tmp_path / "u.onnx", ExportConfig(input="uint8"))
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    with open_runner(tmp_path / "u.onnx") as raw, open_runner(path) as normalised:
        assert raw.input.dtype == "uint8" and raw.input.shape == (None, 32, 32, 3)
        assert np.allclose(raw.infer(images).logits, normalised.predict(images).logits, atol=1e-4)


def test_scale_and_shift_are_the_normalisation():
    _, facts = tiny_model()
    scale, shift = scale_and_shift(facts.model.preprocess)
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    expected = normalise(images, facts.model.preprocess)
    assert np.allclose(images.transpose(0, 3, 1, 2) * np.reshape(scale, (1, 3, 1, 1)) + np.reshape(shift, (1, 3, 1, 1)),
                       expected, atol=1e-5)


def test_ratio_one_exports_the_dense_graph(exported, tmp_path):
    export_onnx(exported[0], tmp_path / "d.onnx", load=LoadConfig(keep=KeepRequest(ratio=1.0)))
    assert not {"TopK", "GatherElements"} & set(operators(tmp_path / "d.onnx"))


def test_another_image_size_and_schedule_are_exported_as_asked(exported, tmp_path):
    load = LoadConfig(image_size=(64, 48), keep=KeepRequest(counts=(20, 10, 5)))
    report = export_onnx(exported[0], tmp_path / "m.onnx", ExportConfig(with_tokens=True), load)
    assert report.facts.keep_counts == (20, 10, 5) and report.facts.model.image_size == (64, 48)
    with open_runner(tmp_path / "m.onnx") as runner:
        assert [k.shape[1] for k in runner.infer(np.zeros((1, 3, 64, 48), np.float32)).kept] == [20, 10, 5]


def test_k_beyond_tensorrts_limit_needs_permission():
    with pytest.raises(ConfigError, match=r"at most 3840.*--allow-large-k"):
        check_k((3841,), 5000, ExportConfig())
    check_k((3841,), 5000, ExportConfig(allow_large_k=True))
    check_k((3840,), 5000, ExportConfig())
    check_k((5000,), 5000, ExportConfig())                                 # a stage that drops nothing has no TopK


class FixedBatch(torch.nn.Module):
    """A block that computes with the batch size it was traced at."""

    def forward(self, tokens):
        return tokens + torch.zeros(int(tokens.shape[0]), 1, 1)


def test_a_baked_in_batch_is_an_error_not_a_surprise(tmp_path):
    model, facts = tiny_model(0.5)
    model.backbone.blocks[0] = FixedBatch()
    with pytest.raises(ExportError, match=r"batch"):
        export_model(model, facts, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_static_batch_in_the_graph_is_found():
    value = onnx.helper.make_tensor_value_info("images", 1, [2, 3, 4, 4])
    logits = onnx.helper.make_tensor_value_info("logits", 1, [2, 3])
    axes = onnx.helper.make_tensor("axes", 7, [2], [2, 3])
    node = onnx.helper.make_node("ReduceMean", ["images", "axes"], ["logits"], keepdims=0)
    proto = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [logits], [axes]))
    with pytest.raises(ExportError, match="'images' was baked in as 2"):
        export_module._check_interface(onnx_ir.from_proto(proto).graph, ["logits"])


def test_an_existing_file_survives_a_failed_export(exported, tmp_path, monkeypatch):
    target = tmp_path / "m.onnx"
    target.write_bytes(b"old")

    def disk_full(path, content):
        path.write_text("half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(export_module, "_trace", lambda *_: (onnx_ir.load(exported[1]), ()))
    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(ArtifactError, match="No space left"):
        export_onnx(exported[0], target, ExportConfig(with_tokens=True))
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_exporting_leaves_the_model_and_the_loggers_as_they_were(tmp_path):
    model, facts = tiny_model(0.5)
    before = model(tiny_images())
    level = logging.getLogger("torch.onnx").level
    export_model(model, dataclasses.replace(facts), tmp_path / "m.onnx")
    assert torch.equal(before, model(tiny_images())) and logging.getLogger("torch.onnx").level == level
    assert all(m.fused_attn for m in model.modules() if hasattr(m, "fused_attn"))


def test_nothing_is_printed(exported, tmp_path, capfd):
    export_onnx(exported[0], tmp_path / "m.onnx")
    out, err = capfd.readouterr()
    assert out == "" and err == ""
