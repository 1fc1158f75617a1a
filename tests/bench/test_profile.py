import json

import pytest
from helpers import needs_openvino, tiny_checkpoint

from dyvit_deploy.bench.config import BenchConfig
from dyvit_deploy.bench.profile import OVERHEAD, locate, place_times, profile
from dyvit_deploy.deploy.config import DeployConfig
from dyvit_deploy.deploy.dense import benchmark
from dyvit_deploy.deploy.pipeline import export_artifact
from dyvit_deploy.errors import BackendError
from dyvit_deploy.export.config import ExportConfig
from dyvit_deploy.runners.open import open_runner
from dyvit_deploy.runners.profiling import LayerTime, medians, onnxruntime_layers


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("profile"))


def layers(*names):
    return [LayerTime(name, operator, 1.0) for name, _, operator in (name.partition(":") for name in names)]


def test_layers_without_a_name_prepare_the_next_one_that_has_one():
    found = locate(layers("patch_embed.proj/Conv", "node_Add_1", "blocks.0.attn.qkv/MatMul", "node_slice",
                          "score_predictor.0.in_conv.1/MatMul", "selector.0/TopK", "node_7:Concat", "MVN_3:MVN",
                          "blocks.1.mlp.fc1/MatMul", "head/Gemm", "Reorder_9:Reorder"), stages=(1,))
    assert found == ["stem", "block 0", "block 0", "predictor 0", "predictor 0", "gather 0", "gather 0",
                     "blocks from 1", "blocks from 1", "head", "head"]


@pytest.mark.parametrize("name, place", [("fuser.1/Concat", "gather 1"), ("attn_pool.proj/MatMul", "head"),
                                         ("norm_pre/LayerNormalization", "stem"),
                                         ("blocks.2.attn.proj/MatMul", "blocks from 1"),
                                         ("patch_embed.proj/Conv", "stem"), ("norm/LayerNormalization", "head")])
def test_the_name_of_a_layer_gives_its_place(name, place):
    assert locate(layers(name), stages=(1,)) == [place]


def test_shares_add_up_and_a_foreign_graph_has_one_place():
    times = place_times(layers("a", "b", "blocks.0/Add", "head/Gemm"), ())
    assert sum(t.share for t in times) == pytest.approx(1) and sum(t.layers for t in times) == 4
    assert [t.place for t in place_times(layers("a", "b"), ())] == ["other"]


def test_a_layer_has_the_median_of_its_runs():
    assert medians([("a", "Add", 1.0), ("b", "Mul", 5.0), ("a", "Add", 9.0), ("a", "Add", 2.0)]) == [
        LayerTime("a", "Add", 2.0), LayerTime("b", "Mul", 5.0)]


@pytest.mark.parametrize("kind", ["model.onnx", pytest.param("model.xml", marks=needs_openvino)])
@pytest.mark.parametrize("without", [(), ("all",)])
def test_every_place_of_a_pruned_model_is_found(checkpoint, tmp_path, kind, without):
    form = "openvino" if kind.endswith("xml") else "onnx"
    export_artifact(checkpoint, tmp_path / kind, DeployConfig(form, ExportConfig(without=without)))
    with open_runner(tmp_path / kind) as runner:
        # OpenVINO does not list what takes less than a microsecond, as a gather of two tiny images may.
        report, stages = profile(runner, 32), runner.facts.prune.stages
    places = [p.place for p in report.places]
    assert places[0] == "stem" and places[-1] == "head"
    for stage in range(len(stages)):
        assert {f"predictor {stage}", f"gather {stage}"} <= set(places)
    assert sum(place.startswith("block") for place in places) == len(stages) + 1
    overhead = sum(p.share for p in report.places if p.place.startswith(OVERHEAD))
    assert report.overhead == pytest.approx(overhead) and 0 < overhead < 1
    assert report.total_ms == pytest.approx(sum(p.ms for p in report.places))


def test_pytorch_names_what_to_profile_instead(checkpoint):
    with open_runner(checkpoint) as runner, pytest.raises(BackendError, match="as an ONNX"):
        profile(runner, 1)


def test_bench_profiles_what_it_can_and_notes_the_rest(checkpoint, tmp_path):
    export_artifact(checkpoint, tmp_path / "m.onnx")
    config = BenchConfig((1, 2), seconds=0.1, warmup=1, min_runs=3, memory=False, profile=True)
    report = benchmark([tmp_path / "m.onnx", checkpoint], config)
    assert [(p.artifact, p.batch) for p in report.profiles] == [
        (name, batch) for batch in (1, 2) for name in ("dense tiny", "dense tiny, rewritten", "m.onnx")]
    # One note for the checkpoint and one for its baseline.
    assert sum("PyTorch does not report" in note for note in report.notes) == 2
    assert json.loads(json.dumps(report.to_json()))["profiles"][0]["layers"][0]["ms"] > 0


def test_a_profile_that_the_disk_has_no_room_for_is_one_sentence(tmp_path):
    class Session:
        def run(self, names, feed): ...

        def end_profiling(self):
            (tmp_path / "half.json").write_text("[{")
            return str(tmp_path / "half.json")
    with pytest.raises(BackendError, match="free space"):
        onnxruntime_layers(Session(), {}, 1)
