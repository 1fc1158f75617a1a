"""A sweep: its steps, and that it repeats none of them."""
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import fake_runner, photo_folder, tiny_checkpoint
from rich.console import Console

from dyvit_deploy.bench.report import Timing
from dyvit_deploy.calibration.config import CalibrationConfig
from dyvit_deploy.config import KeepRequest, LoadConfig
from dyvit_deploy.deploy.report import Progress
from dyvit_deploy.errors import (
    ArtifactError,
    BackendError,
    CheckpointError,
    ConfigError,
    DataError,
    ExportError,
    MissingDependency,
)
from dyvit_deploy.settings.notes import LOGGER
from dyvit_deploy.sweep import run as run_module
from dyvit_deploy.sweep.chart import draw_charts
from dyvit_deploy.sweep.grid import GridPoint, SweepConfig, check_runnable
from dyvit_deploy.sweep.run import run_sweep
from dyvit_deploy.sweep.store import read_store, recall
from dyvit_deploy.sweep.target import parse_targets

GRID = dict(keep_ratios=(1.0, 0.5), precisions=("fp32", "int8"), backends=("onnx",), batches=(1, 2), seconds=0.1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return tiny_checkpoint(folder), str(photo_folder(folder / "photos", 10, classes=5))


class Verdict(SimpleNamespace):
    def __bool__(self):
        return not self.failures


@pytest.fixture
def fake(monkeypatch):
    """Fakes of the stages; `calls` counts them, `rejected` and `broken` name files that fail."""
    calls, rejected, broken = [], set(), {}

    def export(checkpoint, path, config, load, progress):
        calls.append(("export", path.name))
        if path.name in broken:
            raise broken[path.name]
        made = path.with_suffix(f".rejected{path.suffix}") if path.name in rejected else path
        made.write_text(path.name)
        failures = ("batch 1: logits are off",) if path.name in rejected else ()
        return Verdict(path=str(made), failures=failures, gate=parity(), export=SimpleNamespace(
            facts=SimpleNamespace(keep_counts=(8, 4, 2))))

    def parity(*arguments, failures=(), **_):
        batch = SimpleNamespace(images=10, top1_agreement=0.99, overlap_forgiven=(), overlap=(0.97, 0.95))
        return SimpleNamespace(data="photos", batches=(batch,), failures=failures)

    def check(first, second, *arguments, **_):
        calls.append(("check", Path(second).name))
        return parity()

    def evaluate(path, *arguments, **_):
        calls.append(("eval", path.name))
        return SimpleNamespace(data="photos", images=10, top1=0.75, failures=(), answers=None)

    def benchmark(paths, config, load=None, track=None):
        calls.append(("bench", config.batches, tuple(path.name for path in paths)))
        assert Path(config.baseline).name == run_module.DENSE_FILE and not config.memory
        return SimpleNamespace(timings=[
            Timing(path.name, "x", "x", config.batches[0], 2.0 + i, 3.0 + i, 4.0 + i, 100.0, 200, True, None, None,
                   1.5, None) for i, path in enumerate(paths)])

    for name, stand_in in (("export_artifact", export), ("check_artifacts", check), ("evaluate_artifact", evaluate),
                           ("benchmark", benchmark), ("draw_charts", lambda *_: ())):
        monkeypatch.setattr(run_module, name, stand_in)
    return SimpleNamespace(calls=calls, rejected=rejected, broken=broken)


def config(made, **changes):
    return SweepConfig(**(GRID | dict(data=made[1]) | changes))


def test_everything_is_measured_once_and_times_are_taken_in_one_call_per_batch(made, fake, tmp_path):
    report = run_sweep(made[0], tmp_path, config(made))
    assert report and len(report.rows) == 8 and not report.skipped
    files = ("keep1.0-fp32-onnx.onnx", "keep1.0-int8-onnx.onnx", "keep0.5-fp32-onnx.onnx", "keep0.5-int8-onnx.onnx")
    assert [c for c in fake.calls if c[0] == "bench"] == [("bench", (1,), files), ("bench", (2,), files)]
    first = report.rows[0]
    assert (first.top1, first.agreement, first.overlap, first.speedup) == (0.75, 0.99, 0.95, 1.5)
    json.dumps(report.to_json(), allow_nan=False)

    fake.calls.clear()
    # Uses the settings of the previous sweep.
    again = run_sweep(made[0], tmp_path)
    assert fake.calls == [] and again.rows == report.rows and again.config == report.config
    assert again.to_json() == report.to_json()


def test_only_missing_results_are_measured_and_a_note_names_the_two_runs(made, fake, tmp_path):
    run_sweep(made[0], tmp_path, config(made))
    fake.calls.clear()
    report = run_sweep(made[0], tmp_path, recall(tmp_path, dict(keep_ratios=(1.0, 0.5, 0.7), batches=(2, 4))))
    new = "keep0.7-fp32-onnx.onnx", "keep0.7-int8-onnx.onnx"
    assert {c[1] for c in fake.calls if c[0] == "export"} == set(new)
    second, fourth = (c[1:] for c in fake.calls if c[0] == "bench")
    # At batch 4 nothing had been timed before.
    assert second == ((2,), new) and len(fourth[1]) == 6
    assert any("stem from 2 runs" in note for note in report.notes)
    # Only the batch sizes of the last call.
    assert {row.batch for row in report.rows} == {2, 4}


@pytest.mark.parametrize("change, stages", [
    (dict(seconds=5.0), {"bench"}), (dict(threads=1), {"bench"}), (dict(images=5), {"check", "eval"})])
def test_a_changed_setting_repeats_what_depends_on_it(made, fake, tmp_path, change, stages):
    run_sweep(made[0], tmp_path, config(made))
    fake.calls.clear()
    run_sweep(made[0], tmp_path, recall(tmp_path, change))
    assert {call[0] for call in fake.calls} == stages


def test_a_file_that_is_gone_or_changed_is_made_and_timed_again(made, fake, tmp_path):
    run_sweep(made[0], tmp_path, config(made))
    (tmp_path / "keep1.0-fp32-onnx.onnx").unlink()
    (tmp_path / "keep0.5-int8-onnx.onnx").write_text("other")
    fake.calls.clear()
    run_sweep(made[0], tmp_path)
    files = ["keep1.0-fp32-onnx.onnx", "keep0.5-int8-onnx.onnx"]
    assert [c[1] for c in fake.calls if c[0] == "export"] == files


def test_an_interrupted_sweep_keeps_what_was_done(made, fake, tmp_path):
    fake.broken["keep0.5-fp32-onnx.onnx"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_sweep(made[0], tmp_path, config(made))
    assert len(read_store(tmp_path).artifacts) == 2
    fake.broken.clear()
    fake.calls.clear()
    assert len(run_sweep(made[0], tmp_path).rows) == 8
    assert [c[1] for c in fake.calls if c[0] == "export"][:2] == ["keep0.5-fp32-onnx.onnx", "keep0.5-int8-onnx.onnx"]


def test_a_rejected_artifact_is_neither_timed_nor_recommended(made, fake, tmp_path):
    fake.rejected |= {"keep0.5-int8-onnx.onnx"}
    report = run_sweep(made[0], tmp_path, config(made)).aimed_at(parse_targets(["size_mib<=9"]))
    assert [a.file for a in report.rejected] == ["keep0.5-int8-onnx.rejected.onnx"]
    assert not any("keep0.5-int8" in name for call in fake.calls if call[0] == "bench" for name in call[2])
    assert "keep0.5-int8" not in report.answer.best.artifact and len(report.rows) == 6
    fake.calls.clear()
    assert run_sweep(made[0], tmp_path).rejected == report.rejected and not fake.calls


def test_what_the_labelled_images_reject_is_not_timed_either(made, fake, tmp_path, monkeypatch):
    wrong = SimpleNamespace(data="photos", failures=("batch 1: too far",), batches=(
        SimpleNamespace(images=10, top1_agreement=0.1, overlap_forgiven=(), overlap=()),))
    monkeypatch.setattr(run_module, "check_artifacts", lambda *a, **k: wrong)
    report = run_sweep(made[0], tmp_path, config(made))
    assert not report and len(report.rejected) == 4 and "every artifact differs" in report.failures[0]
    assert not [c for c in fake.calls if c[0] == "bench"]


def test_what_fails_is_skipped_with_its_reason_but_a_full_disk_is_not(made, fake, tmp_path):
    fake.broken |= {"keep0.5-int8-onnx.onnx": ExportError("It cannot be."),
                    "keep0.5-fp32-onnx.onnx": CheckpointError("It cannot drop tokens.")}
    report = run_sweep(made[0], tmp_path, config(made))
    assert [s.reason for s in report.skipped] == ["It cannot drop tokens.", "It cannot be."] and len(report.rows) == 4
    assert "int8 in onnx at keep ratio 0.5: It cannot be." in report.left_out()[1]
    fake.broken["keep0.5-int8-onnx.onnx"] = ArtifactError("The disk is full.")
    with pytest.raises(ArtifactError, match="disk"):
        run_sweep(made[0], tmp_path)


def test_an_artifact_that_does_not_run_does_not_stop_the_others(made, fake, tmp_path, monkeypatch):
    name, timed = "keep0.5-int8-onnx.onnx", run_module.benchmark

    def benchmark(paths, config, **options):
        if config.batches == (2,) and any(path.name == name for path in paths):
            raise BackendError("Something is wrong.")
        return timed(paths, config, **options)

    monkeypatch.setattr(run_module, "benchmark", benchmark)
    monkeypatch.setattr(run_module, "open_runner", lambda path, **_: fake_runner(
        np.zeros((2, 5)), batch=1 if path.name == name else None, name=path.name))
    report = run_sweep(made[0], tmp_path, config(made))
    assert len(report.rows) == 7 and {row.batch for row in report.rows if row.artifact.endswith(name)} == {1}
    assert [s.reason for s in report.skipped] == [f"Batch 2: {name} takes batches of 1 only; pass --batch 1."]


def test_an_error_that_no_artifact_has_by_itself_ends_the_sweep(made, fake, tmp_path, monkeypatch):
    def benchmark(*_, **__):
        raise BackendError("The baseline is broken.")

    monkeypatch.setattr(run_module, "benchmark", benchmark)
    monkeypatch.setattr(run_module, "open_runner", lambda path, **_: fake_runner(np.zeros((2, 5))))
    with pytest.raises(BackendError, match="The baseline is broken"):
        run_sweep(made[0], tmp_path, config(made))
    monkeypatch.setattr(run_module, "open_runner", benchmark)
    with pytest.raises(ExportError, match=r"Nothing could be timed: Batch 2: The baseline"):
        run_sweep(made[0], tmp_path)


def test_when_nothing_is_left_the_first_reason_is_the_error(made, fake, tmp_path):
    with pytest.raises(ExportError, match=r"Nothing is left to sweep: ONNX Runtime on a CPU has no fp8"):
        run_sweep(made[0], tmp_path / "s", config(made, precisions=("fp8", "bf16")))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("precision, backend", [("float8", "onnx"), ("bfloat16", "onnx"), ("float8", "openvino"),
                                                ("float16", "openvino")])
def test_what_a_backend_does_not_have_is_refused_before_the_work(precision, backend):
    with pytest.raises(BackendError, match="has no"):
        check_runnable(GridPoint(0.7, precision, backend))


@pytest.mark.parametrize("backend", ["trt", "rtx"])
def test_engines_need_a_gpu(backend, monkeypatch):
    monkeypatch.setattr("dyvit_deploy.sweep.grid.gpu", lambda: None)
    with pytest.raises(BackendError, match="none works here"):
        check_runnable(GridPoint(0.7, "float16", backend))
    monkeypatch.setattr("dyvit_deploy.sweep.grid.gpu", lambda: object())
    check_runnable(GridPoint(0.7, "float16", backend))


def test_another_checkpoint_and_other_options_are_refused(made, fake, tmp_path):
    run_sweep(made[0], tmp_path / "out", config(made), LoadConfig(keep=KeepRequest(align=2)))
    before = (tmp_path / "out/sweep.json").read_bytes()
    with pytest.raises(ArtifactError, match=r"another checkpoint, .*choose another -o"):
        run_sweep(tiny_checkpoint(tmp_path, seed=3), tmp_path / "out")
    with pytest.raises(ConfigError, match="another align"):
        run_sweep(made[0], tmp_path / "out", None, LoadConfig(keep=KeepRequest(align=4)))
    with pytest.raises(ConfigError, match="calibration method"):
        run_sweep(made[0], tmp_path / "out", config(made, calibration=CalibrationConfig(method="max")))
    assert (tmp_path / "out/sweep.json").read_bytes() == before
    assert run_sweep(made[0], tmp_path / "out").rows[0].command.count("--align 2") == 1


def test_what_was_calibrated_on_noise_does_not_pass_as_calibrated_on_data(made, fake, tmp_path):
    noise = CalibrationConfig(allow_noise=True)
    run_sweep(made[0], tmp_path, config(made, data=None, calibration=noise))
    with pytest.raises(ConfigError, match="another calibration data;"):
        run_sweep(made[0], tmp_path, recall(tmp_path, dict(data=made[1])))


def test_how_to_calibrate_is_free_until_something_is_calibrated(made, fake, tmp_path):
    run_sweep(made[0], tmp_path, config(made, precisions=("fp32",)))
    other = dict(precisions=("fp32", "int8"), calibration=CalibrationConfig("elsewhere", method="max"))
    report = run_sweep(made[0], tmp_path, recall(tmp_path, other))
    commands = [row.command for row in report.rows if row.precision == "int8"]
    assert len(commands) == 4 and all("--calib elsewhere --method max" in command for command in commands)
    with pytest.raises(ConfigError, match="another calibration data;"):
        run_sweep(made[0], tmp_path, recall(tmp_path, dict(calibration=CalibrationConfig(made[1]))))


def test_each_option_that_is_left_out_is_as_it_was(made, fake, tmp_path):
    calibration = CalibrationConfig(made[1], method="max")
    load = LoadConfig(keep=KeepRequest(selector="random", align=2))
    dense = tiny_checkpoint(tmp_path, ratio=None)
    first = run_sweep(dense, tmp_path, config(made, calibration=calibration), load)
    for keep in (KeepRequest(align=2), KeepRequest(selector="random"), KeepRequest()):
        assert run_sweep(dense, tmp_path, None, LoadConfig(keep=keep)).rows == first.rows
    with pytest.raises(ConfigError, match="another align;"):
        run_sweep(dense, tmp_path, None, LoadConfig(keep=KeepRequest(align=4)))
    recalled = recall(tmp_path, dict(calibration=CalibrationConfig(images=32))).calibration
    assert recalled == CalibrationConfig(made[1], images=32, method="max")


def test_the_report_names_the_machine_and_notes_when_it_is_another(made, fake, tmp_path, monkeypatch):
    def on(cores):
        values = {"processor": "Quick 9", "logical_cores": cores, "gpu": None}
        monkeypatch.setattr(run_module, "machine", lambda: values)
        return values

    def printed(report):
        console = Console(file=io.StringIO(), width=200)
        console.print(report.table())
        # Joined, because titles wrap.
        return " ".join(console.file.getvalue().split())

    before = on(4)
    first = run_sweep(made[0], tmp_path, config(made, batches=(1,)))
    assert "; Quick 9, 4 cores" in printed(first)
    [run] = first.to_json()["runs"]
    assert run["machine"] == before and run["run"] == first.rows[0].run and "numpy" in run["versions"] and run["at"]
    assert not any("machine" in note for note in first.notes)
    on(8)
    again = run_sweep(made[0], tmp_path, recall(tmp_path, dict(batches=(1, 2))))
    assert any("stem from 2 runs on different machines" in note for note in again.notes)
    assert ("Rows of run 0 were measured on another machine (Quick 9, 4 cores); pass a new -o to measure here."
            in again.notes)
    assert "; Quick 9, 4 cores; Quick 9, 8 cores" in printed(again) and " run " in printed(again)
    assert [run["run"] for run in again.to_json()["runs"]] == [0, 1]


@pytest.mark.parametrize("spoil", [
    lambda v: "{", lambda v: "[]", lambda v: json.dumps(v | {"format": 9}), lambda v: json.dumps(v | {"runs": []}),
    lambda v: json.dumps(v | {"runs": [{"machine": None}]}),
    lambda v: json.dumps({n: x for n, x in v.items() if n != "artifacts"}), lambda v: "\x00\x01",
    lambda v: json.dumps(v | {"latencies": [v["latencies"][0] | {"latency_ms_p50": "fast"}]}),
    lambda v: json.dumps(v | {"config": v["config"] | {"precisions": ["int7"]}})])
def test_a_damaged_store_is_refused_in_one_sentence(made, fake, tmp_path, spoil):
    run_sweep(made[0], tmp_path, config(made))
    path = tmp_path / "sweep.json"
    path.write_text(spoil(json.loads(path.read_text())))
    with pytest.raises(ArtifactError, match=r"(damaged \(|in format 9).*delete it to sweep again"):
        run_sweep(made[0], tmp_path)


def test_images_that_cannot_be_used_are_refused_before_the_work(made, fake, tmp_path):
    few = str(photo_folder(tmp_path / "few", 4, classes=2))
    with pytest.raises(DataError, match="has 2 classes, the model 5"):
        run_sweep(made[0], tmp_path / "s", config(made, data=few))
    with pytest.raises(DataError, match="neither an image folder"):
        run_sweep(made[0], tmp_path / "s", config(made, data="digitz"))
    with pytest.raises(ArtifactError, match="does not exist"):
        run_sweep(tmp_path / "no.safetensors", tmp_path / "s", config(made))
    assert not fake.calls and not (tmp_path / "s").exists()


def test_the_order_of_classes_is_told_once_where_the_checkpoint_has_no_names(made, fake, tmp_path, caplog):
    run_sweep(made[0], tmp_path, config(made))
    [told] = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert "tiny.safetensors has no class names" in told and told.endswith("class0, class1, class2, ... class4.")


def test_a_class_map_is_passed_on_and_another_one_repeats_the_evaluation(made, fake, tmp_path):
    two = str(photo_folder(tmp_path / "two", 4, classes=2))
    mapped = config(made, data=two, class_map=str(tmp_path / "map.txt"))
    for text, evaluations in (("class0 4\nclass1 2", 4), ("class0 4\nclass1 2", 0), ("class0 4\nclass1 3", 4)):
        (tmp_path / "map.txt").write_text(text)
        fake.calls.clear()
        run_sweep(made[0], tmp_path / "out", mapped)
        assert [call[0] for call in fake.calls].count("eval") == evaluations
    (tmp_path / "map.txt").write_text("class0 5\nclass1 2")
    with pytest.raises(DataError, match="gives 'class0' the class 5"):
        run_sweep(made[0], tmp_path / "out", mapped)


def test_without_labels_the_dense_model_is_the_measure_and_noise_is_no_evidence(made, fake, tmp_path):
    flat = str(photo_folder(tmp_path / "flat", 4))
    report = run_sweep(made[0], tmp_path / "a", config(made, data=flat))
    assert report.quality == "dense_agreement" and report.rows[0].top1 is None
    assert not [c for c in fake.calls if c[0] == "eval"]
    report = run_sweep(made[0], tmp_path / "b", config(made, data=None))
    assert report.quality == "keep_ratio" and "noise" in report.notes[0]


@pytest.mark.parametrize("values, words", [
    (dict(keep_ratios=(0.0,)), "Keep ratio 0.0"), (dict(keep_ratios=()), "at least one of its keep ratios"),
    (dict(precisions=("int9",)), "Did you mean 'int8'"), (dict(backends=("onxx",)), "Did you mean 'onnx'"),
    (dict(batches=(0,)), "at least 1"), (dict(seconds=0), "positive"), (dict(seconds=float("nan")), "positive"),
    (dict(threads=-1), "0 \\(all cores\\)"), (dict(images=0), "At least 1 image")])
def test_invalid_values_are_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        SweepConfig(**values)


def test_the_same_value_twice_is_one_and_file_names_are_their_own():
    grid = SweepConfig(keep_ratios=(0.7, 0.7, 0.70001), precisions=("fp32", "float32"), backends=("trt", "rtx"))
    files = [candidate.file for candidate in grid.candidates()]
    assert len(files) == len(set(files)) == 4 and files[0] == "keep0.7-fp32-trt.plan"
    assert SweepConfig.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid


def test_progress_goes_to_the_callback_and_is_never_printed(made, fake, tmp_path, capsys):
    printed = []
    run_sweep(made[0], tmp_path, config(made), progress=Progress(printed.append))
    assert printed[0] == "1 of 4: keep1.0-fp32-onnx.onnx" and "timing 4 artifacts at batch 1" in printed[4]
    assert capsys.readouterr().out == ""


def test_the_charts_are_the_same_bytes_for_the_same_figures(made, fake, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="charts need matplotlib")
    monkeypatch.setattr(run_module, "draw_charts", draw_charts)
    report = run_sweep(made[0], tmp_path, config(made))
    before = [Path(chart).read_bytes() for chart in report.charts]
    assert [Path(chart).name for chart in report.charts] == ["pareto.png", "pareto.svg"]
    for chart in report.charts:
        Path(chart).unlink()
    assert [Path(chart).read_bytes() for chart in run_sweep(made[0], tmp_path).charts] == before


def test_without_matplotlib_there_is_a_note_in_the_place_of_a_chart(made, fake, tmp_path, monkeypatch):
    def missing(*_):
        raise MissingDependency("matplotlib is not installed.")
    monkeypatch.setattr(run_module, "draw_charts", missing)
    report = run_sweep(made[0], tmp_path, config(made))
    assert report and report.notes[-1] == "No chart was drawn: matplotlib is not installed." and not report.charts
