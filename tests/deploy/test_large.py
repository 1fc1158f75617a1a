"""Every command on graphs that do not fit into one file; the limit is lowered, so that the demo student is above it."""
import json

import numpy as np
import onnx
import pytest
from helpers import ROOT, dyvit, needs_modelopt, needs_openvino, needs_rtx, photo_folder

from dyvit_deploy.engine.sidecar import read_sidecar
from dyvit_deploy.graph import limits
from dyvit_deploy.graph.files import data_path
from dyvit_deploy.parity.tolerance import PrecisionTolerance
from dyvit_deploy.runners.open import open_runner

DEMO = ROOT / "dyvit_deploy" / "demo" / "digits-s.safetensors"
WIDE = dict.fromkeys(("int8", "float16", "bfloat16", "float8"), PrecisionTolerance(0.0, 1.0, 0.0))


@pytest.fixture(scope="module", autouse=True)
def small_limit():
    """The student has 4 MiB of weights in float32, 1 MiB in int8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "ONE_FILE_LIMIT", 300_000)
        patch.setattr("dyvit_deploy.deploy.pipeline.TIMED_SECONDS", 0.05)
        # The photos are no digits, so margins are small.
        patch.setattr("dyvit_deploy.parity.compare.TOLERANCES", WIDE)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photo_folder(tmp_path_factory.mktemp("photos"), 8)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """The student in float32, in two files."""
    path = tmp_path_factory.mktemp("large") / "m.onnx"
    typed("export", DEMO, "--format", "onnx", "--with-tokens", "-o", path)
    return path


def typed(*arguments):
    result = dyvit(*arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def is_pair(path):
    """True if the graph has its weights in the data file of its own name."""
    proto = onnx.load(path, load_external_data=False)
    places = {e.value for t in proto.graph.initializer for e in t.external_data if e.key == "location"}
    return places == {f"{path.name}.data"} and data_path(path).is_file()


@pytest.mark.parametrize("options", [
    pytest.param(["--int8"], id="int8"),
    pytest.param(["--fp16"], id="float16", marks=needs_modelopt),
    pytest.param(["--bf16", "--target", "tensorrt"], id="bfloat16", marks=needs_modelopt),
    pytest.param(["--int8", "--target", "tensorrt"], id="int8-tensorrt", marks=needs_modelopt)])
def test_a_lowered_graph_is_two_files_that_agree_with_float32(graph, photos, tmp_path, options):
    typed("export", DEMO, "--format", "onnx", "--with-tokens", *options, "--calib", photos, "-o", tmp_path / "l.onnx")
    assert is_pair(graph) and is_pair(tmp_path / "l.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["l.onnx", "l.onnx.data"]
    typed("check", graph, tmp_path / "l.onnx", "--data", photos, "--images", 4, "--batch", "1,3")


def test_a_lowered_graph_below_the_limit_is_one_file(graph, photos, tmp_path, monkeypatch):
    weights = data_path(graph).stat().st_size
    monkeypatch.setattr(limits, "ONE_FILE_LIMIT", weights // 2)
    typed("export", DEMO, "--format", "onnx", "--int8", "--calib", photos, "-o", tmp_path / "l.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["l.onnx"]
    assert open_runner(tmp_path / "l.onnx").precision == "int8"


@needs_openvino
@pytest.mark.parametrize("options", [[], ["--int8", "--calib"]], ids=["float32", "int8"])
def test_openvino_takes_a_graph_of_any_size(photos, tmp_path, options):
    options = [*options, *[photos] * bool(options)]
    typed("export", DEMO, "--format", "openvino", *options, "-o", tmp_path / "m.xml")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.bin", "m.xml"]
    typed("check", DEMO, tmp_path / "m.xml", "--data", photos, "--images", 4)


def test_it_is_measured_and_described_like_any_other_graph(graph, photos, tmp_path):
    typed("check", DEMO, graph, "--data", photos, "--images", 4)
    typed("bench", graph, "--batch", 1, "--seconds", 0.1, "--json", tmp_path / "bench.json")
    assert len(json.loads((tmp_path / "bench.json").read_text())["timings"]) == 3
    typed("visualize", graph, "--data", photos, "--images", 1, "-o", tmp_path / "figures")
    typed("predict", graph, photos, "--csv", tmp_path / "rows.csv")
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 9
    typed("inspect", graph, "--json", tmp_path / "inspect.json")
    found = json.loads((tmp_path / "inspect.json").read_text())
    assert found["size_mib"] == (graph.stat().st_size + data_path(graph).stat().st_size) / 2**20
    assert found["details"]["weights in"] == "m.onnx.data" and "in ONNX Runtime" in found["details"]


def test_it_is_calibrated_and_searched_for_sensitive_layers(graph, photos, tmp_path):
    typed("calibrate", graph, "--data", photos, "-o", tmp_path / "ranges.json")
    text = typed("sensitivity", graph, "--data", photos, "--images", 4, "--ranges", tmp_path / "ranges.json")
    assert "each layer alone in int8" in text


@needs_rtx
def test_an_engine_is_built_from_both_files(graph, tmp_path):
    (tmp_path / "link.onnx").symlink_to(graph)
    for source in (graph, tmp_path / "link.onnx"):
        typed("build", source, "--format", "rtx", "-o", tmp_path / "e.plan")
        facts = read_sidecar(tmp_path / "e.plan")
        assert facts.plan["bytes"] > 0.9 * data_path(graph).stat().st_size
        assert set(facts.products.values()) == {"float32"}


@pytest.mark.parametrize("ready", [True, False], ids=["graph", "checkpoint"])
def test_a_model_repository_has_both_files_and_their_names_fit(graph, tmp_path, ready):
    pytest.importorskip("tritonclient.grpc", reason="tritonclient is missing: pip install 'dyvit-deploy[triton]'")
    typed("export", graph if ready else DEMO, "--format", "triton", "--name", "student", "-o", tmp_path / "models")
    version = tmp_path / "models" / "student" / "1"
    assert sorted(file.name for file in version.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert is_pair(version / "model.onnx")
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64), np.float32)
    with open_runner(version / "model.onnx") as served, open_runner(graph) as runner:
        assert (served.infer(images).logits == runner.infer(images).logits).all()


def test_a_sweep_makes_an_artifact_again_whose_data_file_is_gone(photos, tmp_path):
    def swept():
        typed("sweep", DEMO, "--keep-ratios", 0.7, "--precisions", "fp32", "--backends", "onnx", "--batch", 1, "--data",
              photos, "--seconds", 0.05, "-o", tmp_path)
        return json.loads((tmp_path / "sweep.json").read_text())["artifacts"][0]
    artifact = swept()
    path = tmp_path / artifact["file"]
    assert artifact["size_mib"] == (path.stat().st_size + data_path(path).stat().st_size) / 2**20
    content = data_path(path).read_bytes()
    data_path(path).unlink()
    assert swept() == artifact and data_path(path).read_bytes() == content


def test_a_dry_run_names_both_files(tmp_path):
    text = typed("export", DEMO, "--format", "onnx", "--dry-run", "-o", tmp_path / "m.onnx")
    assert "m.onnx.data" in text and not list(tmp_path.iterdir())
