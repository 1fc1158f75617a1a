"""Refits of engines, with a fake library and a fake GPU."""
import json
import shlex
import shutil

import onnx
import pytest
from fake_gpu import CARD, NEW, OLD, RTX, engine, graph, prepared, spoil
from helpers import dyvit, tiny_checkpoint, tiny_graph

from dyvit_deploy import export_artifact
from dyvit_deploy.calibration.config import PrecisionConfig
from dyvit_deploy.deploy.config import DeployConfig
from dyvit_deploy.deploy.on_device import build_artifact, refit_artifact
from dyvit_deploy.engine.build import build_engine, plan_build
from dyvit_deploy.engine.config import BatchProfile, BuildConfig
from dyvit_deploy.engine.refit import refit_engine
from dyvit_deploy.engine.sidecar import read_sidecar, sidecar_path
from dyvit_deploy.errors import ArtifactError, BackendError, ConfigError, DataError

# In this version, REFIT can drop a bias.
DOUBTED = "11.3.0.14"
PROFILES = (BatchProfile(1, 2, 4),)
STRIPPED, REFITTABLE = BuildConfig(PROFILES, strip_weights=True), BuildConfig(PROFILES, refittable=True)
BOTH = BuildConfig(PROFILES, strip_weights=True, refittable=True)
pytestmark = pytest.mark.usefixtures("quick_export")


@pytest.fixture(params=[OLD, NEW, RTX])
def trt(request, monkeypatch):
    library = prepared(monkeypatch, request.param)
    library.format = "rtx" if request.param == RTX else "trt"
    yield library
    assert library.unknown == library.removed_touched == []


def trained_otherwise(path):
    """The same graph with other weights."""
    proto, other = onnx.load(path), path.with_name("other.onnx")
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor) * 0.5
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, other)
    return other


def built(folder, library, config):
    """A plan of the tiny model, and the ONNX file that it was built from."""
    path, onnx_file = folder / "tiny.plan", tiny_graph(folder)
    build_engine(onnx_file, path, library.format, config)
    return path, onnx_file


@pytest.mark.parametrize("trt", [OLD, NEW], indirect=True)
def test_a_plan_without_weights_takes_those_of_its_own_file_only(trt, tmp_path):
    path, own = built(tmp_path, trt, STRIPPED)
    other, renamed, full = trained_otherwise(own), tmp_path / "renamed.onnx", tmp_path / "full.plan"
    with pytest.raises(ConfigError, match=r"^[^\n]*takes only the weights [^\n]* tiny\.onnx with sha256 \w{12}, not "
                                          r"those of other\.onnx; give that file, or build the plan with "
                                          r"--refittable\.$"):
        refit_engine(path, other, full)
    result = dyvit("refit", path, other, "-o", full)
    *steps, error = result.output.strip().splitlines()
    assert result.exit_code == 2 and steps == [] and "--refittable" in error
    assert not full.exists()
    shutil.copyfile(own, renamed)
    facts = refit_engine(path, renamed, full).facts
    assert not facts.stripped and not facts.config.refittable


@pytest.mark.parametrize("config", [BOTH, REFITTABLE])
def test_a_refittable_plan_takes_other_weights(trt, tmp_path, config):
    path, own = built(tmp_path, trt, config)
    report = refit_artifact(path, trained_otherwise(own), tmp_path / "full.plan")
    assert report and report.on_device is not None
    assert any("other.onnx is not the file" in note for note in report.notes)


def test_rtx_builds_plans_without_weights_refittable_as_its_documentation_says(monkeypatch, tmp_path):
    rtx = prepared(monkeypatch, RTX)
    rtx.format = "rtx"
    path, own = built(tmp_path, rtx, STRIPPED)
    assert rtx.built[0]["flags"] == ["REFIT", "STRIP_PLAN"] and read_sidecar(path).config.refittable
    assert refit_artifact(path, trained_otherwise(own), tmp_path / "full.plan")
    trt = prepared(monkeypatch, NEW)
    trt.format = "trt"
    built(tmp_path, trt, STRIPPED)
    assert trt.built[0]["flags"] == ["STRIP_PLAN"]
    for format, refit in (("rtx", True), ("trt", False)):
        trtexec, polygraphy = plan_build(own, tmp_path / "e.plan", format, STRIPPED).commands
        assert "--stripWeights" in trtexec and "--strip-plan" in polygraphy
        assert ("--refit" in shlex.split(trtexec)) is ("--refittable" in shlex.split(polygraphy)) is refit


@pytest.mark.parametrize("config", [BOTH, REFITTABLE])
def test_a_plan_stays_refittable_where_the_library_can(trt, tmp_path, config):
    path, own = built(tmp_path, trt, config)
    first, second = tmp_path / "first.plan", tmp_path / "second.plan"
    report = refit_artifact(path, own, first)
    stays = trt.__version__ != OLD
    assert read_sidecar(first).config.refittable is stays
    if stays:
        assert not any("takes no other weights" in note for note in report.notes)
        assert refit_artifact(first, trained_otherwise(own), second)
    else:
        assert any("cannot keep it refittable, TensorRT 10.14 can; keep tiny.plan" in note for note in report.notes)
        with pytest.raises(ConfigError, match="takes no weights; build it with --refittable"):
            refit_engine(first, own, second)


def test_a_refit_is_compared_with_its_graph_at_every_size(trt, tmp_path):
    path, own = built(tmp_path, trt, BOTH)
    full = tmp_path / "full.plan"
    result = dyvit("refit", path, own, "-o", full, "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert [batch["batch"] for batch in report["on_device"]["batches"]] == [1, 2, 4]
    assert report["passed"] and report["path"] == str(full) and "against tiny.onnx" in result.output
    assert shlex.split(read_sidecar(full).rebuild) == ["dyvit", "refit", str(path), str(own), "-o", str(full)]


def test_a_refit_that_differs_from_its_graph_is_rejected(trt, tmp_path):
    path, own = built(tmp_path, trt, BOTH)
    (tmp_path / "full.plan").write_bytes(b"earlier")
    spoil(trt)
    report = refit_artifact(path, own, tmp_path / "full.plan")
    assert not report and report.path == str(tmp_path / "full.rejected.plan") and report.advice
    assert (tmp_path / "full.plan").read_bytes() == b"earlier" and not sidecar_path(tmp_path / "full.plan").exists()
    result = dyvit("refit", path, own, "-o", tmp_path / "b.plan", "--json", tmp_path / "report.json")
    assert result.exit_code == 1 and "FAILED batch 1: " in result.output
    assert sorted(p.name for p in tmp_path.glob("b*")) == ["b.rejected.plan", "b.rejected.plan.json"]
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["passed"] is False and values["failures"] and values["on_device"]["batches"]


def test_a_refit_that_cannot_be_compared_has_a_note_with_the_reason(trt, tmp_path):
    path, own = built(tmp_path, trt, BOTH)
    trt.gives_contexts = False
    report = refit_artifact(path, own, tmp_path / "full.plan")
    assert report and report.on_device is None and report.path == str(tmp_path / "full.plan")
    assert [note for note in report.notes if note.startswith("Not compared on this GPU: ") and "cannot prepare" in note]


def test_a_foreign_graph_is_refitted_too(trt, tmp_path):
    """ONNX Runtime cannot run this graph, so there is no reference to compare with."""
    trt.compute = trt.answer
    path = engine(tmp_path, BOTH, trt.format, facts=False)
    report = refit_artifact(path, tmp_path / "tiny.onnx", tmp_path / "full.plan")
    assert report and report.on_device is None and any("Not compared" in note for note in report.notes)


def test_what_a_refit_cannot_do_is_refused_before_the_work(trt, tmp_path):
    path, own = built(tmp_path, trt, BOTH)
    for out, data, error in ((path, None, ConfigError), (tmp_path / "x.onnx", None, ConfigError),
                             (tmp_path / "x.plan", "no such folder", DataError)):
        with pytest.raises(error):
            refit_artifact(path, own, out, data)
    assert len(trt.graphs) == 1 and not (tmp_path / "x.plan").exists()


def test_a_gpu_that_the_library_does_not_support_cannot_refit(monkeypatch, tmp_path):
    rtx = prepared(monkeypatch, RTX)
    rtx.format = "rtx"
    path, own = built(tmp_path, rtx, STRIPPED)
    prepared(monkeypatch, RTX, CARD)
    with pytest.raises(BackendError, match=r"does not support Fake GPU .*--format trt"):
        refit_engine(path, own, tmp_path / "full.plan")


@pytest.fixture
def doubted(monkeypatch):
    library = prepared(monkeypatch, DOUBTED)
    library.format = "trt"
    return library


def test_a_refittable_engine_of_11_3_is_always_compared(doubted, tmp_path):
    own, warning = tiny_graph(tmp_path), "TensorRT 11.3.0.14 can drop the bias of a matrix product"
    alone = build_engine(own, tmp_path / "alone.plan", "trt", REFITTABLE)
    # The builder itself compares nothing.
    assert [warning in note for note in alone.notes] == [True]
    report = build_artifact(own, tmp_path / "a.plan", "trt", REFITTABLE)
    assert report and report.on_device is not None and not any(warning in note for note in report.notes)
    assert "-o " + str(tmp_path / "a.plan") in read_sidecar(tmp_path / "a.plan").rebuild
    spoil(doubted)
    result = dyvit("build", own, "--refittable", "--batch", "1:2:4", "-o", tmp_path / "b.plan")
    assert result.exit_code == 1 and "FAILED batch 1: " in result.output and "--refittable" in result.output
    assert sorted(p.name for p in tmp_path.glob("b*")) == ["b.rejected.plan", "b.rejected.plan.json"]


def test_one_that_cannot_run_here_is_written_with_a_warning(doubted, tmp_path):
    report = build_artifact(tiny_graph(tmp_path), tmp_path / "a.plan", "trt", BOTH)
    assert report and report.on_device is None and (tmp_path / "a.plan").exists()
    assert any("can drop the bias" in note and "dyvit check" in note for note in report.notes)
    assert any(note.startswith("Not compared on this GPU: its weights were left out") for note in report.notes)
    full = refit_artifact(tmp_path / "a.plan", tmp_path / "tiny.onnx", tmp_path / "full.plan")
    assert full.on_device is not None and not any("can drop the bias" in note for note in full.notes)


def test_an_export_of_one_is_compared_also_without_a_gate(doubted, tmp_path):
    config = DeployConfig("trt", precision=PrecisionConfig(gate=False), build=REFITTABLE)
    report = export_artifact(tiny_checkpoint(tmp_path), tmp_path / "a.plan", config)
    assert report and report.on_device is not None and not any("drop the bias" in note for note in report.notes)
    spoil(doubted)
    assert not export_artifact(tmp_path / "tiny.safetensors", tmp_path / "b.plan", config)


@pytest.mark.parametrize("version, config", [(DOUBTED, STRIPPED), (DOUBTED, BuildConfig()), (NEW, REFITTABLE),
                                             (OLD, REFITTABLE), ("11.30.0.1", REFITTABLE)])
def test_other_engines_are_built_without_that_comparison(monkeypatch, tmp_path, version, config):
    spoil(prepared(monkeypatch, version))
    report = build_artifact(tiny_graph(tmp_path), tmp_path / "a.plan", "trt", config)
    assert report and report.on_device is None and report.notes == ()


def test_tf32_may_differ_as_float16_may(monkeypatch, tmp_path):
    """TF32 rounds operands to as many bits as float16, which exceeds the tolerance of float32."""
    spoil(prepared(monkeypatch, NEW), lambda logits: logits * 1.002)
    for tf32 in (True, False):
        config = DeployConfig("trt", build=BuildConfig(PROFILES, tf32=tf32))
        assert bool(export_artifact(tiny_checkpoint(tmp_path), tmp_path / f"{tf32}.plan", config)) is tf32


def test_a_plan_that_no_sidecar_describes_is_not_refitted(trt, tmp_path):
    path, own = built(tmp_path, trt, BOTH)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ArtifactError, match=r"is not the file that tiny\.plan\.json describes; copy both"):
        refit_engine(path, own, tmp_path / "full.plan")
    sidecar_path(path).unlink()
    with pytest.raises(ArtifactError, match=r"has no tiny\.plan\.json, which says what it is; copy both"):
        refit_engine(path, own, tmp_path / "full.plan")


def test_a_report_stays_apart_from_the_sidecar(trt, tmp_path):
    path = engine(tmp_path, BOTH, trt.format)
    result = dyvit("refit", path, graph(tmp_path), "-o", tmp_path / "f.plan", "--json", tmp_path / "f.plan.json")
    assert result.exit_code == 2 and "name another file" in result.output
