"""Files that were damaged, changed by hand or made to harm: each is read, or refused with a sentence, at once."""
import contextlib
import dataclasses
import json
import struct
import time
import zipfile

import pytest
import safetensors.torch
import torch
from helpers import needs_openvino, plan_file, tiny_checkpoint, tiny_config, tiny_graph
from mutated_kinds import describe, kinds
from mutations import run

from dyvit_deploy.artifacts.facts import ArtifactFacts
from dyvit_deploy.checkpoints import archive
from dyvit_deploy.config import LoadConfig, PruneConfig
from dyvit_deploy.errors import ArtifactError, CheckpointError, ConfigError
from dyvit_deploy.graph.read import graph_facts, load_graph, set_facts
from dyvit_deploy.inspect.artifact import inspect_artifact
from dyvit_deploy.model.macs import count_costs, shortened
from dyvit_deploy.settings import untrusted
from dyvit_deploy.settings.untrusted import parse_json, typed

COUNT = 500
# Each builds models to find the one that fits, which takes half a minute for 500.
FEW = {"config.json of timm": 50, "config.json of transformers": 50}
MARKS = {"OpenVINO rt_info": [needs_openvino]}
SECONDS, MIB = 2.0, 1024


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, [])) for name in kinds()])
def test_mutated_files_are_read_or_refused_with_a_sentence_at_once(name, tmp_path):
    for module in {".cls": ("webdataset",), "shard info": ("webdataset",)}.get(name, ()):
        pytest.importorskip(module)
    count = FEW.get(name, COUNT)
    outcome = run(name, kinds()[name](tmp_path), count)
    assert not outcome.broken
    assert outcome.read + outcome.refused == count and outcome.refused
    assert outcome.slowest < SECONDS, outcome.slowest_seed
    assert outcome.peak_mib < MIB


@pytest.mark.parametrize("text, words", [
    ("[" * 100_000, "nested deeper"), ("[" * 40 + "]" * 40, "nested deeper than 32 levels"), ("NaN", "is nan"),
    ("1e999", "is inf"), ("1" + "0" * 30, "more than 64 bit"), ("9" * 5000, "digits"), ('"\\ud800"', "not Unicode"),
    (json.dumps({"k" * 5000: 1}), "is longer than 4,096"),
    ("[" + "0," * 1_000_001 + "0]", "more than 1,000,000 values"),
    (json.dumps("x" * (17 << 20)), "more than 16 MiB"), ("{", "Expecting"), (b"\xff", "can't decode")])
def test_json_above_a_limit_is_refused_with_the_limit(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_json(text)


@pytest.mark.parametrize("value, hint, words", [
    ("1", int, "x must be a whole number, not '1'"), (True, int, "whole number"), (1.0, int, "whole number"),
    (1, str, "x must be text"), ("a", tuple[str, ...], "x must be a list, not 'a'"),
    (["a", 1], tuple[str, ...], r"x\[1\]"), ([1], tuple[int, int], "a list of 2"),
    ({"a": 1}, dict[str, str], r"x\['a'\] must be text"), ([], dict[str, int], "object"),
    (float("nan"), float | None, "finite"), ("a", int | None, "whole number"), (1, bool, "true or false")])
def test_a_value_of_another_type_is_named_with_its_place(value, hint, words):
    with pytest.raises(ConfigError, match=words):
        typed(value, hint, "x")


def test_metadata_whose_lists_are_text_are_refused_and_not_taken_letter_by_letter():
    values = json.loads(ArtifactFacts(tiny_config()).to_json()) | {"forms": "one-gather"}
    with pytest.raises(ArtifactError, match="forms must be a list, not 'one-gather'"):
        ArtifactFacts.from_json(json.dumps(values), "m.onnx")


@pytest.mark.parametrize("changes", [
    {"depth": 1000}, {"depth": 300_000}, {"image_size": [800_000] * 2}, {"classes": 10**12}, {"width": 2**40},
    {"heads": 10**9, "width": 10**9}, {"depth": 256}, {"width": 65_536, "depth": 256, "mlp_ratio": 64},
    {"image_size": [16_384] * 2, "patch_size": 1}, {"mlp_ratio": 1e300}, {"heads": 3}, {"options": [["depth", 200]]},
    {"options": [["reg_tokens", 10**9]]}, {"builder": "timm", "timm_name": "vit_giant_patch14_224"},
    {"name": "x" * 5000},
    {"builder": "lvvit", "depth": 256}, {"builder": "timm", "timm_name": "test_vit", "options": [["depth", 10**6]]}])
def test_sizes_that_metadata_claim_make_no_work(tmp_path, changes):
    values = json.loads(ArtifactFacts(tiny_config(), PruneConfig((1, 2), (0.9, 0.8))).to_json())
    values["model"] |= changes
    (tmp_path / "m.onnx").touch()
    # The first description imports libraries.
    describe(tmp_path / "m.onnx", ArtifactFacts(tiny_config()))
    began = time.process_time()
    with contextlib.suppress(ArtifactError):
        describe(tmp_path / "m.onnx", ArtifactFacts.from_json(json.dumps(values), "m.onnx"))
    assert time.process_time() - began < SECONDS


@pytest.mark.parametrize("prune", [
    None, PruneConfig((0,), (0.5,)), PruneConfig((0, 1), (0.9, 0.5)), PruneConfig((3, 6, 9), (0.9, 0.8, 0.5)),
    PruneConfig((12,), (0.5,)), PruneConfig((4, 9), (0.7, 0.5), selector="attention", fuse=True)])
@pytest.mark.parametrize("forms", [(), ("split-predictor", "read-block")])
def test_blocks_that_are_counted_once_cost_the_same_as_each_by_itself(prune, forms, monkeypatch):
    from dyvit_deploy.model import macs

    config = tiny_config(depth=13)
    assert len(shortened(config, prune)[2]) < 13
    [short] = count_costs(config, [prune], forms)
    monkeypatch.setattr(macs, "shortened", lambda config, prune: (config, prune, (1,) * config.depth))
    [whole] = macs._count.__wrapped__(config, (prune,), forms)
    assert short.parameters == whole.parameters and short.selectors == whole.selectors
    assert short.gmacs == pytest.approx(whole.gmacs) and short.blocks == pytest.approx(whole.blocks)


def test_an_archive_that_unpacks_to_many_times_its_size_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "EXPANDED_MIB", 1)
    plain, bomb = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    torch.save({"w": torch.zeros(2 << 20)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert bomb.stat().st_size < plain.stat().st_size / 100
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(CheckpointError, match=r"0\.0 MiB and would unpack to 8\.0 MiB"):
        archive.read_archive(bomb)


def test_a_checkpoint_that_was_packed_again_is_read(tmp_path):
    plain, packed = tmp_path / "plain.pth", tmp_path / "packed.pth"
    torch.save({"w": torch.randn(1000, generator=torch.Generator().manual_seed(0))}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert torch.equal(archive.read_archive(packed).content["w"], archive.read_archive(plain).content["w"])


@pytest.mark.parametrize("length", [17 << 20, 2**40, 2**64 - 1])
def test_a_safetensors_header_of_any_claimed_length_is_refused(tmp_path, length):
    path = tmp_path / "long.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"a":' + b" " * 100)
    with pytest.raises(CheckpointError, match=r"claims a header|not a complete safetensors"):
        inspect_artifact(path)


def test_a_sidecar_and_a_header_of_the_wrong_types_are_refused_by_name(tmp_path):
    from dyvit_deploy.engine.sidecar import sidecar_path

    plan = plan_file(tmp_path)
    values = json.loads(sidecar_path(plan).read_text())
    sidecar_path(plan).write_text(json.dumps(values | {"products": {"head": 3}}))
    with pytest.raises(ArtifactError, match=r"products\['head'\] must be text, not 3"):
        inspect_artifact(plan)
    checkpoint = tiny_checkpoint(tmp_path)
    tensors = safetensors.torch.load_file(checkpoint)
    safetensors.torch.save_file(tensors, checkpoint, {"dyvit": '{"format": 1, "model": "tiny"}'})
    with pytest.raises(ArtifactError, match="model must be an object, not 'tiny'"):
        inspect_artifact(checkpoint)


def test_a_graph_whose_metadata_are_of_a_larger_model_makes_no_work(tmp_path):
    from dyvit_deploy.bench.baselines import TimedArtifact
    from dyvit_deploy.deploy.dense import make_dense
    from dyvit_deploy.runners.open import open_runner

    path = tiny_graph(tmp_path)
    for changes, words in (({"image_size": (3200, 3200)}, "3200 x 3200 px, and its input 32 x 32"),
                           ({"width": 4096, "depth": 64}, "weights, and the file has")):
        proto = load_graph(path)
        facts = graph_facts(proto, str(path))
        model = dataclasses.replace(facts.model, **changes)
        set_facts(proto, dataclasses.replace(facts, keep_counts=None, model=model))
        changed = tmp_path / "changed.onnx"
        changed.write_bytes(proto.SerializeToString())
        with open_runner(changed, device="cpu") as runner, pytest.raises(ArtifactError, match=words):
            runner.image_spec()
            make_dense(TimedArtifact(runner, str(changed), None, load=LoadConfig()), tmp_path / "dense")


def test_one_damaged_sweep_does_not_stop_a_report(tmp_path):
    from dyvit_deploy.report.collect import collect

    tiny_graph(tmp_path)
    for name, text in (("sweep.json", '{"format": 1, "runs": 3}'), ("deep.json", "[" * 9999)):
        (tmp_path / name).write_text(text)
    found = collect(tmp_path, lambda items, *_: items)
    assert [entry.name for entry in found.entries] == ["tiny.onnx", "tiny.safetensors"]
    assert [line.partition(" ")[0].rpartition("/")[2] for line in found.skipped] == ["deep.json", "sweep.json"]


def test_the_limits_are_above_all_that_dyvit_writes():
    values = {"class_names": [f"class {number}" for number in range(21_843)]}
    assert parse_json(json.dumps(values)) == values
    assert len(json.dumps(values)) < untrusted.MOST_BYTES / 10
