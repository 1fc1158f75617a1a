"""Every selector as a graph: what it computes, what stays float32, and what is refused."""
import numpy as np
import onnx
import pytest
import torch
from helpers import cached_export, needs_modelopt, photo_folder, tiny_checkpoint, tiny_images, tiny_model

from dyvit_deploy.config import KeepRequest, LoadConfig, PruneConfig
from dyvit_deploy.data.open import open_images
from dyvit_deploy.deploy.pipeline import export_artifact
from dyvit_deploy.errors import ConfigError
from dyvit_deploy.export.config import ExportConfig
from dyvit_deploy.graph.read import load_graph, product_precisions, weights_fingerprint
from dyvit_deploy.model.checkpoint import load_model, save_checkpoint
from dyvit_deploy.model.dynamicvit import DynamicViT
from dyvit_deploy.parity.compare import check_artifacts
from dyvit_deploy.parity.config import CheckConfig

FREE = {
    "fused": KeepRequest(ratio=0.5, stages=(1, 2), selector="attention", fuse=True),
    "random": KeepRequest(ratio=0.5, stages=(1, 2), selector="random"),
    "structural": KeepRequest(selector="structural"),
}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """A dense checkpoint, and its graph for each selector that needs no training."""
    folder = tmp_path_factory.mktemp("selectors")
    dense = tiny_checkpoint(folder, None)
    for name, keep in FREE.items():
        export = ExportConfig(with_tokens=name != "structural")
        cached_export(dense, folder / f"{name}.onnx", export, LoadConfig(keep=keep))
    return dense, {name: folder / f"{name}.onnx" for name in FREE}


@pytest.mark.parametrize("name", FREE)
def test_a_dense_checkpoint_drops_tokens_without_training_and_its_graph_agrees(graphs, name):
    dense, files = graphs
    report = check_artifacts(dense, files[name], config=CheckConfig(images=6, batches=(1, 3)))
    assert report, report.failures
    assert report.batches[0].overlap == (() if name == "structural" else (1.0, 1.0))


def test_a_learned_mask_is_exported_as_it_was_trained(tmp_path):
    _, facts = tiny_model(None)
    prune = PruneConfig((2,), (0.5,), selector="static")
    model = DynamicViT(facts.model, prune)
    torch.nn.init.normal_(model.score_predictor[0].logits)
    save_checkpoint(tmp_path / "static.safetensors", model, type(facts)(facts.model, prune))
    cached_export(tmp_path / "static.safetensors", tmp_path / "static.onnx", ExportConfig(with_tokens=True))
    assert check_artifacts(tmp_path / "static.safetensors", tmp_path / "static.onnx", config=CheckConfig(images=4))
    again, _ = load_model(tmp_path / "static.safetensors")
    logits = model.score_predictor[0].logits
    best = (logits[:, 0] - logits[:, 1]).topk(8).indices
    assert torch.equal(again.forward_pruned(tiny_images()).kept[0][0], best)


def test_graphs_of_one_model_and_other_selectors_are_told_apart(graphs):
    """Ranges are reused for the same fingerprint."""
    assert len({weights_fingerprint(load_graph(path)) for path in graphs[1].values()}) == 3


@needs_modelopt
def test_attention_that_ranks_tokens_stays_float32(graphs, tmp_path):
    from dyvit_deploy.calibration.half import to_half
    from dyvit_deploy.runners.ort import OrtRunner

    graph = graphs[1]["fused"]
    images = open_images(str(photo_folder(tmp_path, 4)), OrtRunner(graph).image_spec())
    found = product_precisions(to_half(graph, "float16", images))
    assert {n for n, p in found.items() if p == "float32"} == {f"score_predictor.{s}.score/MatMul" for s in (0, 1)}


def test_pooled_patches_are_no_tokens_to_tell(graphs, tmp_path):
    with pytest.raises(ConfigError, match="leave out --with-tokens"):
        cached_export(graphs[0], tmp_path / "x.onnx", ExportConfig(with_tokens=True),
                      LoadConfig(keep=FREE["structural"]))


@pytest.mark.usefixtures("quick_export")
def test_an_export_without_training_says_so_and_how_to_measure_it(graphs, tmp_path):
    dense, files = graphs
    from dyvit_deploy.deploy.config import DeployConfig

    report = export_artifact(dense, tmp_path / "x.onnx", DeployConfig(export=ExportConfig(with_tokens=True)),
                             LoadConfig(keep=FREE["fused"]))
    assert "dyvit eval" in report.notes[0] and report.export.facts.training is None
    names = [node.name for node in onnx.load(files["fused"]).graph.node]
    assert "selector.1/TopK" in names and "fuser.1/ReduceSum" in names
    assert np.array_equal(report.export.facts.keep_counts, (8, 4))
