"""Engines on their way through export, refit, check and bench, with a library and a GPU that are not there."""
import dataclasses
import io
import json
import shlex

import click
import onnx
import pytest
from click.testing import CliRunner
from fake_gpu import NEW, OLD, RTX, agrees, engine, images, opened, prepared, spoil
from helpers import tiny_checkpoint
from rich.console import Console

from dyvit_deploy.bench import run as bench
from dyvit_deploy.calibration.config import CalibrationConfig, PrecisionConfig
from dyvit_deploy.cli import progress
from dyvit_deploy.cli.main import main
from dyvit_deploy.config import KeepRequest, LoadConfig
from dyvit_deploy.deploy import dense, pipeline
from dyvit_deploy.deploy.config import DeployConfig
from dyvit_deploy.deploy.dense import benchmark
from dyvit_deploy.deploy.plan import export_command
from dyvit_deploy.engine.config import BatchProfile, BuildConfig
from dyvit_deploy.engine.monitor import BuildStep
from dyvit_deploy.engine.refit import refit_engine
from dyvit_deploy.engine.sidecar import read_sidecar, sidecar_path
from dyvit_deploy.errors import ArtifactError, BackendError, ConfigError, MissingDependency
from dyvit_deploy.export.config import ExportConfig

pytestmark = pytest.mark.usefixtures("quick_export")
PROFILES = (BatchProfile(1, 1, 2, "small"), BatchProfile(4, 5, 6, "large"))


@pytest.fixture(params=[OLD, NEW])
def trt(request, monkeypatch):
    library = prepared(monkeypatch, request.param)
    yield library
    assert library.unknown == library.removed_touched == []


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def exported(checkpoint, path, format="trt", **build):
    return pipeline.export_artifact(checkpoint, path, DeployConfig(format, build=BuildConfig(**build)))


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.parametrize("settings", [{"strip_weights": True}, {"strip_weights": True, "version_compatible": True}])
def test_a_refitted_engine_has_weights_and_says_how_it_came_to_be(trt, tmp_path, settings):
    trt.compute = trt.answer
    path, full = engine(tmp_path, BuildConfig(**settings)), tmp_path / "with weights.plan"
    with pytest.raises(BackendError, match="weights were left out; put them in: dyvit refit"):
        opened(path)
    report = refit_engine(path, tmp_path / "tiny.onnx", full)
    facts = read_sidecar(full)
    assert read_sidecar(path).stripped and not facts.stripped and not facts.config.strip_weights
    assert report.notes == ("The new plan takes no other weights than those of tiny.onnx: tiny.plan was built with "
                            "--strip-weights alone.",)
    assert shlex.split(facts.rebuild) == ["dyvit", "refit", str(path), str(tmp_path / "tiny.onnx"), "-o", str(full)]
    assert facts.source == read_sidecar(path).source and facts.products == read_sidecar(path).products
    with opened(full) as runner:
        assert agrees(runner.infer(images(3)), images(3))


def test_weights_of_another_file_are_said_to_be_others(trt, tmp_path):
    trt.compute = trt.answer
    path, other = engine(tmp_path, BuildConfig(refittable=True)), tmp_path / "other.onnx"
    proto = onnx.load(tmp_path / "tiny.onnx")
    proto.producer_name = "another training"
    onnx.save(proto, other)
    report = refit_engine(path, other, tmp_path / "new.plan")
    assert "other.onnx is not the file that tiny.plan was built from" in report.notes[0]
    assert report.facts.source["file"] == "other.onnx" and opened(tmp_path / "new.plan").facts is not None


def test_weights_that_do_not_fit_are_one_sentence_and_nothing_is_written(trt, tmp_path):
    stripped = engine(tmp_path, BuildConfig(strip_weights=True, refittable=True))
    fixed = engine(tmp_path, name="fixed")
    proto = onnx.load(tmp_path / "tiny.onnx")
    for node in proto.graph.node:
        node.name = node.name.replace("blocks.1", "blocks.2")
    onnx.save(proto, tmp_path / "other.onnx")
    with pytest.raises(BackendError, match=r"^[^\n]*weights of other\.onnx \(.*not refittable[^\n]*$"):
        refit_engine(stripped, tmp_path / "other.onnx", tmp_path / "new.plan")
    with pytest.raises(ConfigError, match="takes no weights; build it with --refittable, or with --strip"):
        refit_engine(fixed, tmp_path / "fixed.onnx", tmp_path / "new.plan")
    assert not list(tmp_path.glob("new*"))


def test_refit_writes_plans_only_and_needs_the_facts(trt, tmp_path):
    path = engine(tmp_path, BuildConfig(strip_weights=True))
    with pytest.raises(ConfigError, match=r"\.plan files, not full\.onnx"):
        refit_engine(path, tmp_path / "tiny.onnx", tmp_path / "full.onnx")
    sidecar_path(path).unlink()
    with pytest.raises(ArtifactError, match=r"has no tiny\.plan\.json, which says what it is"):
        refit_engine(path, tmp_path / "tiny.onnx", tmp_path / "full.plan")
    assert not list(tmp_path.glob("full*"))


def test_an_engine_is_compared_with_the_checkpoint_at_every_size_of_every_profile(trt, checkpoint, tmp_path):
    report = exported(checkpoint, tmp_path / "a.plan", profiles=PROFILES)
    assert report and [batch.batch for batch in report.on_device.batches] == [1, 2, 4, 5, 6]
    assert {batch.max_error < 1e-4 for batch in report.on_device.batches} == {True} and report.notes == ()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.plan", "a.plan.json"]
    assert opened(tmp_path / "a.plan").infer(images(5)).logits.shape == (5, 5) and report.table()


def test_an_engine_that_differs_from_the_checkpoint_is_rejected(trt, checkpoint, tmp_path):
    spoil(trt)
    (tmp_path / "a.plan").write_bytes(b"earlier")
    report = exported(checkpoint, tmp_path / "a.plan")
    assert not report and all("images differ" in failure for failure in report.failures)
    assert report.path.endswith("a.rejected.plan") and read_sidecar(tmp_path / "a.rejected.plan")
    assert (tmp_path / "a.plan").read_bytes() == b"earlier"
    assert any("a.plan is from an earlier run" in note for note in report.notes)
    found = invoke("export", checkpoint, "--format", "trt", "-o", tmp_path / "b.plan")
    assert found.exit_code == 1 and "FAILED batch 1: " in found.output
    assert sorted(p.name for p in tmp_path.glob("b*")) == ["b.rejected.plan", "b.rejected.plan.json"]


def test_an_engine_is_not_compared_without_gate_or_gpu(monkeypatch, checkpoint, tmp_path):
    spoil(prepared(monkeypatch, NEW))
    config = DeployConfig("trt", precision=PrecisionConfig(gate=False))
    assert pipeline.export_artifact(checkpoint, tmp_path / "a.plan", config).on_device is None
    spoil(prepared(monkeypatch, RTX, card=None))
    assert exported(checkpoint, tmp_path / "b.plan", "rtx").on_device is None


@pytest.mark.parametrize("version, build, words", [
    (NEW, {"strip_weights": True}, "its weights were left out"),
    (RTX, {"compute_capabilities": ("8.6",)}, "built for compute capability 8.6, and Fake GPU has 8.9"),
    (NEW, {}, "TensorRT cannot prepare")])
def test_an_engine_that_does_not_open_here_is_written_all_the_same(
        monkeypatch, checkpoint, tmp_path, version, build, words):
    library = prepared(monkeypatch, version)
    library.gives_contexts = bool(build)
    report = exported(checkpoint, tmp_path / "a.plan", "rtx" if version == RTX else "trt", **build)
    assert report and report.on_device is None and read_sidecar(tmp_path / "a.plan")
    assert [words in note for note in report.notes if note.startswith("Not compared on this GPU: ")] == [True]


def test_the_weights_of_a_stripped_export_come_back_as_its_note_says(trt, checkpoint, tmp_path):
    report = exported(checkpoint, tmp_path / "a.plan", strip_weights=True)
    command = next(note for note in report.notes if note.startswith("Its weights")).partition(": ")[2]
    assert invoke(*shlex.split(command)[1:]).exit_code == 0
    found = refit_engine(tmp_path / "a.plan", tmp_path / "a.onnx", tmp_path / "full.plan")
    check = invoke("check", checkpoint, tmp_path / "full.plan", "--batch", "1,8")
    assert len(found.notes) == 1 and check.exit_code == 0, check.output


def test_check_passes_trust_on_to_the_engine(trt, checkpoint, tmp_path):
    exported(checkpoint, tmp_path / "a.plan")
    with (tmp_path / "a.plan").open("ab") as plan:
        plan.write(b" ")
    words = "check", checkpoint, tmp_path / "a.plan"
    refused, trusted = invoke(*words), invoke(*words, "--trust")
    assert refused.exit_code != 0 and "--trust" in refused.output
    assert trusted.exit_code == 0, trusted.output


def test_an_engine_without_a_baseline_is_timed_and_the_baseline_is_built_for_this_machine(trt, tmp_path, monkeypatch):
    trt.compute, asked = trt.answer, []

    def fail(onnx, path, format, config):
        asked.append((format, config))
        raise MissingDependency("TensorRT is not installed.")

    monkeypatch.setattr(dense, "build_engine", fail)
    monkeypatch.setattr(bench, "gpu_facts", lambda precisions: {"matmul_peak_tflops": {}, "clocks": []})
    path = engine(tmp_path, BuildConfig(timing_cache=str(tmp_path / "cache"), optimization_level=2))
    facts = json.loads(sidecar_path(path).read_text())
    facts["config"] |= {"strip_weights": True, "refittable": True}
    sidecar_path(path).write_text(json.dumps(facts))
    report = benchmark([path], bench.BenchConfig((2,), seconds=0.01, warmup=1, min_runs=3, memory=False))
    assert asked == [("trt", BuildConfig(optimization_level=2))]
    assert [(t.artifact, t.speedup) for t in report.timings] == [("tiny.plan", None)]
    assert any("no dense baseline here (TensorRT is not installed); pass --baseline" in note for note in report.notes)


def test_a_build_bar_makes_way_for_the_next_bar(monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(progress, "errors", lambda: screen)
    with progress.BuildBar() as bar:
        for step in (("Building engine", 0, 0, 2), ("Timing kernels", 1, 3, 3), ("Building engine", 0, 2, 2),
                     ("Building engine", 0, 2, 2)):
            bar.update(BuildStep(*step))
        assert not bar._progress.live.is_started                           # recent versions of rich nest displays
        assert list(progress.show_progress("abc", "comparing", 3)) == list("abc")
    assert "timing kernels" in screen.file.getvalue() and "comparing" in screen.file.getvalue()


def test_a_build_bar_starts_again_for_a_second_build(monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(progress, "errors", lambda: screen)
    with progress.BuildBar() as bar:
        for _ in range(2):
            bar.update(BuildStep("Building engine", 0, 0, 2))
            [task] = bar._progress.tasks
            assert bar._progress.live.is_started and (task.completed, task.total) == (0, 2)
            bar.update(BuildStep("Building engine", 0, 2, 2))
            assert not bar._progress.live.is_started


FULL = DeployConfig(
    "rtx", ExportConfig(with_tokens=True, input="uint8", allow_large_k=True),
    PrecisionConfig("int8", rest="bfloat16", gate=False, max_drop=0.5),
    CalibrationConfig("my photos", images=7, method="max", attention=True, allow_noise=True),
    BuildConfig(PROFILES, workspace_mib=64.0, compute_capabilities=("8.9", "12.0"), tf32=True,
                allow_precision_fallback=True))
LOAD = LoadConfig("deit_small", "ema", (32, 64), KeepRequest(ratios=(0.75, 0.5), stages=(1, 2)))


def built(**changes):
    return dataclasses.replace(FULL, build=dataclasses.replace(FULL.build, **changes))


@pytest.mark.parametrize("config, load", [
    (DeployConfig(), LoadConfig()), (FULL, LOAD), (FULL, LoadConfig(keep=KeepRequest(counts=(9, 4, 1)))),
    (FULL, LoadConfig(keep=KeepRequest(0.123456789))),
    (DeployConfig("onnx", precision=PrecisionConfig("float16", "tensorrt", io="float16")), LoadConfig()),
    (built(timing_cache="my cache/it's"), LOAD), (built(profiles=(BatchProfile(1, 2, 3, "two words"),)), LOAD),
    (built(workspace_mib=1234567.5), LOAD), (built(profiles=(PROFILES[0], BatchProfile(2, 2, 2))), LOAD),
], ids=["plain", "all", "counts", "ratio", "float16", "spaces in the cache", "spaces in a profile", "large workspace",
        "default profile second"])
def test_the_command_of_an_export_parses_back(monkeypatch, tmp_path, config, load):
    taken, checkpoint, out = [], tmp_path / "my model.pth", tmp_path / "my engines" / "a b.plan"

    def take(*given):
        taken.append(given[:4])
        raise click.exceptions.Exit(0)

    monkeypatch.setattr(pipeline, "export_artifact", take)
    program, *words = shlex.split(export_command(checkpoint, out, config, load))
    found = invoke(*words)
    assert program == "dyvit" and taken == [(str(checkpoint), str(out), config, load)], found.output
