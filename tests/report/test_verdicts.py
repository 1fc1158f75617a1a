"""The verdicts for real artifacts with reports that are changed by hand."""
import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers import dyvit, tiny_checkpoint, tiny_model
from report_page import quick, verdicts

import dyvit_deploy as dv
from dyvit_deploy.artifacts.files import sha256
from dyvit_deploy.errors import ConfigError
from dyvit_deploy.evaluation.answers import pack_answers
from dyvit_deploy.model.checkpoint import save_checkpoint

pytest.importorskip("jinja2", reason="Jinja2 is missing: pip install 'dyvit-deploy[report]'")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_timings(path, name, **values):
    saved = json.loads(path.read_text())
    for timing in saved["timings"]:
        if timing["artifact"] == name:
            timing.update(values)
    path.write_text(json.dumps(saved))


def evaluated(folder, name, data, images, top1, into=None, answers=None):
    """Writes a report as if that file had been evaluated."""
    path = folder / (into or f"{name}.eval.json")
    shutil.copy(folder / "tiny.onnx.eval.json", folder / "model.tmp")
    values = json.loads((folder / "model.tmp").read_text())
    values["dyvit"]["files"] = {name: sha256(folder / name)}
    path.write_text(json.dumps(values | {"artifact": name, "data": data, "images": images, "top1": top1,
                                         "answers": answers and dataclasses.asdict(answers)}))
    (folder / "model.tmp").unlink()


def without_dense(folder):
    for path in (*folder.glob("dense.onnx*"), *folder.glob("tiny-dense.*")):
        path.unlink()


def both_evaluated(folder, images, reference, worse, better):
    """Reports of tiny.safetensors, which is right for `reference` images, and of tiny.onnx, which is not for `worse` of
    them, and is for `better` others; there is no dense model."""
    without_dense(folder)
    keys, right = np.arange(images, dtype=np.uint64), np.arange(images) < reference
    mine = right.copy()
    mine[:worse], mine[images - better:] = False, True
    for name, correct in (("tiny.safetensors", right), ("tiny.onnx", mine)):
        evaluated(folder, name, "digits:test", images, float(correct.mean()), answers=pack_answers(keys, correct))


def test_an_accuracy_with_nothing_to_compare_with_is_not_known(copied):
    for path in copied.glob("*.safetensors*"):
        path.unlink()
    for name in ("dense.onnx", "plain.onnx"):
        (copied / name).unlink()
    evaluated(copied, "tiny.onnx", "digits:val", 500, 0.12)
    change_timings(copied / "bench.json", "tiny.onnx", speedup=1.5, stable=True, ci95_ms=None)
    found = verdicts(quick(copied), "tiny.onnx")
    assert found["Accuracy"].state == "open" and found["all"].headline == "not known yet"
    assert found["Accuracy"].command == ("dyvit eval CHECKPOINT --data digits --split val --images 500 --json "
                                         "CHECKPOINT.eval.json")


def test_accuracies_are_compared_on_the_images_that_both_saw_however_they_are_spelt(copied):
    for spelling in ("photos", "photos/", "./photos", "x/../photos"):
        evaluated(copied, "tiny.safetensors", "photos", 10_000, 0.9)
        evaluated(copied, "tiny.onnx", spelling, 10_000, 0.9)
        evaluated(copied, "tiny.onnx", "others", 5000, 0.2, "more.json")
        found = verdicts(quick(copied), "tiny.onnx")["Accuracy"]
        assert found.state == "pass" and found.headline == "90.00 % top-1" and "as its checkpoint" in found.lines
    # Another split of the same data.
    evaluated(copied, "tiny.onnx", "photos:val", 10_000, 0.9)
    assert verdicts(quick(copied), "tiny.onnx")["Accuracy"].state == "open"


@pytest.mark.parametrize("images, reference, worse, better, max_drop, state, words", [
    # 80 % on 100 images, 2 of them lost and 2 gained.
    (100, 80, 2, 2, 1.0, "warn", "At most 1 points may be lost, too few images (100): about 1,700 would do."),
    (1700, 1360, 34, 34, 1.0, "pass", "image by image"), (50_000, 40_000, 300, 200, 1.0, "pass", "image by image"),
    # No answer differs, but 100 images cannot show that.
    (100, 80, 0, 0, 1.0, "warn", "too few images (100): about 390 would do"), (390, 312, 0, 0, 1.0, "pass", "-0.98"),
    (1000, 900, 100, 20, 1.0, "fail", "At most 1 points may be lost."), (1000, 900, 100, 20, 50.0, "pass", "-10"),
    # Twice the bound is lost on few images, exactly the bound on many.
    (100, 80, 2, 0, 1.0, "warn", "too few images"), (50_000, 40_000, 500, 0, 1.0, "warn", "too close to the bound"),
    (50_000, 40_000, 0, 0, 0.0, "warn", "too close to the bound"),
])
def test_accuracy_is_green_or_red_only_if_the_interval_excludes_the_bound(copied, images, reference, worse, better,
                                                                          max_drop, state, words):
    both_evaluated(copied, images, reference, worse, better)
    found = verdicts(quick(copied, max_drop=max_drop), "tiny.onnx")["Accuracy"]
    assert found.state == state and words in found.lines[-1 if state != "pass" else 2], found.lines
    assert ("--images 1700 " in found.command) == ("1,700" in words)


@pytest.mark.parametrize("images, top1, state", [(0, 0.8, "warn"), (100, 0.8, "warn"), (5000, 0.8, "warn"),
                                                 (13_000, 0.8, "pass"), (50_000, 0.8, "pass")])
def test_without_answers_the_images_of_two_evaluations_count_as_different_ones(copied, images, top1, state):
    without_dense(copied)
    for name in ("tiny.safetensors", "tiny.onnx"):
        evaluated(copied, name, "digits:test", images, top1)
    found = verdicts(quick(copied), "tiny.onnx")["Accuracy"]
    assert found.state == state
    assert found.lines[2].endswith("not image by image" if images else "Nobody knows on how many images.")
    # Evaluated again, the reference records its answers.
    assert ("dyvit eval tiny.safetensors" in found.command) == (state == "warn")
    if images == 100:
        assert found.lines[2].startswith("95 % interval -11 to +11 points")
        assert "about 13,000 would do" in found.lines[-1]


def test_answers_that_do_not_fit_the_accuracy_are_named_and_left_out(copied):
    both_evaluated(copied, 100, 80, 2, 2)
    path = copied / "tiny.onnx.eval.json"
    good = json.loads(path.read_text())
    damages = ({"correct": "####"}, {"correct": good["answers"]["correct"][:4]}, {"digest": "0"}, {"digest": None},
               {"correct": 7}, {"correct": "ü"})
    for damage in damages:
        path.write_text(json.dumps(good | {"answers": good["answers"] | damage}))
        assert any(line.startswith(f"{path.name} is damaged") for line in quick(copied).notes), damage
    for damage in ({"top1": 0.79}, {"answers": {}}, {"answers": 3}, {"answers": []}, {"images": 10**9}):
        path.write_text(json.dumps(good | damage))
        assert any(line.startswith(f"{path.name} is damaged") for line in quick(copied).notes), damage


def test_figures_of_a_file_without_a_hash_count_for_nothing(copied):
    for path in copied.glob("*.json"):
        stamp = json.loads(path.read_text())["dyvit"]
        change(path, dyvit=stamp | {"files": {}})
    found = verdicts(quick(copied), "tiny.onnx")
    for name in ("Parity", "Accuracy", "Speed"):
        assert found[name].state == "open" and "on an unknown file" in found[name].headline
        assert "does not say which tiny.onnx" in found[name].lines[0]


def test_a_bench_keeps_the_hash_of_its_baseline_too(measured):
    files = json.loads((measured / "bench.json").read_text())["dyvit"]["files"]
    assert files[str(measured / "dense.onnx")] == sha256(measured / "dense.onnx")


def test_agreeing_with_another_checkpoint_is_not_green(copied):
    model, facts = tiny_model(seed=3)
    save_checkpoint(copied / "other.safetensors", model, facts)
    path = copied / "tiny.onnx.check.json"
    values = json.loads(path.read_text())
    values["dyvit"]["files"] = {name: sha256(copied / name) for name in ("other.safetensors", "tiny.onnx")}
    values["reference"] = "other.safetensors"
    path.write_text(json.dumps(values))
    found = verdicts(quick(copied), "tiny.onnx")["Parity"]
    assert found.state == "warn" and "agrees with other.safetensors, which is not its checkpoint" in found.lines
    values["dyvit"]["files"] = {name: sha256(copied / name) for name in ("plain.onnx", "tiny.onnx")}
    # A float32 graph of the same checkpoint, which shares what the exporter may have done wrong.
    values["reference"] = "plain.onnx"
    path.write_text(json.dumps(values))
    assert verdicts(quick(copied), "tiny.onnx")["Parity"].state == "warn"


def test_the_name_of_the_weights_beside_a_checkpoint_does_not_make_it_another(copied):
    path = copied / "tiny.onnx.check.json"
    values = json.loads(path.read_text())
    values["reference"] += " (model weights)"
    path.write_text(json.dumps(values))
    assert verdicts(quick(copied), "tiny.onnx")["Parity"].state == "pass"


def test_agreeing_with_a_checkpoint_that_is_not_here_any_more_is_green(copied):
    for path in copied.glob("tiny.safetensors*"):
        path.unlink()
    assert verdicts(quick(copied), "tiny.onnx")["Parity"].state == "pass"


def test_speed_is_judged_against_each_baseline_by_itself(copied):
    sure = {"stable": True, "ci95_ms": None}
    shutil.copy(copied / "bench.json", copied / "bench2.json")
    for path in copied.glob("bench*.json"):
        change_timings(path, "dense.onnx", **sure)
    change_timings(copied / "bench.json", "tiny.onnx", speedup=1.5, **sure)
    change_timings(copied / "bench2.json", "tiny.onnx", speedup=0.5, latency_ms_p50=7.0, **sure)
    values = json.loads((copied / "bench2.json").read_text())
    values["config"]["baseline"] = "other.onnx"
    (copied / "bench2.json").write_text(json.dumps(values))
    found = verdicts(quick(copied), "tiny.onnx")["Speed"]
    assert found.state == "fail" and found.headline == "slower, 0.50×"  # noqa: RUF001
    assert found.lines[0] == "bench.json: 1.50×"  # noqa: RUF001
    assert {"against dense.onnx", "against other.onnx"} <= set(found.lines)


def test_without_intervals_medians_do_not_count_as_equal(copied):
    change_timings(copied / "bench.json", "tiny.onnx", speedup=1.2, stable=False, ci95_ms=None,
                   latency_ms_p50=5.0, latency_ms_p90=9.0)
    found = verdicts(quick(copied), "tiny.onnx")["Speed"]
    assert found.state == "warn" and "batch 1, 4: the run did not settle; measure longer" in found.lines
    assert not any("overlap" in line for line in found.lines)


@pytest.mark.parametrize("mine, base, words", [(False, True, "the run"), (True, False, "the baseline")])
def test_a_speed_that_did_not_settle_is_neither_green_nor_red_unless_the_intervals_are_apart(copied, mine, base, words):
    for speedup, p50 in ((4.0, 1.0), (0.25, 16.0)):
        for name, ms, stable in (("tiny.onnx", p50, mine), ("dense.onnx", 4.0, base)):
            change_timings(copied / "bench.json", name, latency_ms_p50=ms, latency_ms_p90=ms, stable=stable,
                           speedup=speedup if name == "tiny.onnx" else None, ci95_ms=None)
        found = verdicts(quick(copied), "tiny.onnx")["Speed"]
        assert found.state == "warn" and f"batch 1, 4: {words} did not settle; measure longer" in found.lines
    for name, ms in (("tiny.onnx", 16.0), ("dense.onnx", 4.0)):
        change_timings(copied / "bench.json", name, ci95_ms={"p50": [0.9 * ms, 1.1 * ms]})
    assert verdicts(quick(copied), "tiny.onnx")["Speed"].state == "fail"


def test_runs_and_baselines_have_charts_of_their_own(copied):
    shutil.copy(copied / "bench.json", copied / "later.json")
    for name in ("tiny.onnx", "tiny.safetensors", "dense.onnx"):
        change_timings(copied / "later.json", name, latency_ms_p99=99.0)
    quick(copied)
    page = (copied / "report.html").read_text()
    for section in ("trade-off", "latency"):
        part = page[page.index(f'<section id="{section}"'):]
        titles = [line.split("<")[0] for line in part[:part.index("\n<section id=", 9)].split("<h3>")[1:]]
        assert titles == ["batch 1, bench.json", "batch 1, later.json", "batch 4, bench.json", "batch 4, later.json"]


def test_a_timing_in_two_reports_is_shown_once(copied):
    shutil.copy(copied / "bench.json", copied / "copy.json")
    quick(copied)
    page = (copied / "report.html").read_text()
    assert "<h3>batch 1</h3>" in page and "<h3>batch 1, bench.json</h3>" not in page


def test_a_chart_has_only_what_was_judged_on_the_same_images(copied):
    evaluated(copied, "tiny.onnx", "digits:test", 2000, 0.9)
    quick(copied)
    page = (copied / "report.html").read_text()
    part = page[page.index('<section id="trade-off"'):page.index('<section id="latency"')]
    assert "top-1 on 10 images of photos." in part
    assert "not judged on these images, so not in the chart: C" in part


DAMAGE = {
    "no files": ("export", lambda v: v["dyvit"].update(files={}, report="export")),
    "a huge integer": ("bench", lambda v: v["timings"][0].update(images_per_sec=10**400)),
    "an interval from zero": ("bench", lambda v: v["timings"][0].update(ci95_ms={"p50": [0, 1]})),
    "an interval from below": ("bench", lambda v: v["timings"][0].update(ci95_ms={"p50": [-3, 1]})),
    "a huge latency": ("bench", lambda v: v["timings"][0].update(latency_ms_p99=1e308)),
    "a tiny latency": ("bench", lambda v: v["timings"][0].update(latency_ms_p50=1e-300)),
    "a speed-up of nothing": ("bench", lambda v: v["timings"][0].update(speedup=0)),
    "more right than images": ("eval", lambda v: v.update(top1=1.5)),
    "so many images": ("eval", lambda v: v.update(images=10**400)),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_numbers_that_nobody_measured_are_named_and_left_out(copied, what):
    kind, damage = DAMAGE[what]
    path = copied / {"bench": "bench.json", "eval": "tiny.onnx.eval.json", "export": "tiny.onnx.check.json"}[kind]
    values = json.loads(path.read_text())
    damage(values)
    path.write_text(json.dumps(values | {"gate": dict(values), "on_device": None}))
    result = dyvit("report", copied, "--no-run")
    problem = "not a JSON file that can be used (a whole" if what in ("a huge integer", "so many images") else "damaged"
    assert result.exit_code == 0 and f"{path.name} is {problem}" in result.output


def test_a_sweep_with_impossible_times_is_named(tmp_path, copied):
    row = {"artifact": "tiny.onnx", "backend": "onnx", "precision": "float32", "batch": 1, "latency_ms_p50": 1,
           "latency_ms_p90": 1, "latency_ms_p99": 1e308, "images_per_sec": 1, "runs": 3, "stable": True,
           "speedup": None, "run": 0, "command": "dyvit"}
    stamp = json.loads((copied / "bench.json").read_text())["dyvit"] | {"report": "sweep"}
    for rows in ([row], [row | {"latency_ms_p99": 1, "run": 7}]):
        (copied / "grid.json").write_text(json.dumps({
            "dyvit": stamp, "runs": [{"run": 0, "machine": {}, "versions": {}}], "rows": rows}))
        assert any(line.startswith("grid.json is damaged") for line in quick(copied).notes)


def test_a_folder_that_may_not_be_read_is_named_and_left_out(copied, monkeypatch):
    from pathlib import Path
    (copied / "locked").mkdir()
    (copied / "open").mkdir()
    shutil.copy(copied / "plain.onnx", copied / "open/more.onnx")
    listed = Path.iterdir

    # Simulated, because root may read everything.
    def refusing(path):
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)
    monkeypatch.setattr(Path, "iterdir", refusing)
    report = quick(copied)
    assert any(line.startswith("locked/ cannot be read") for line in report.notes)
    assert "open/more.onnx" in {j.entry.key for j in report.judgements}


def test_more_images_than_a_page_holds_are_refused(measured):
    with pytest.raises(ConfigError, match="At most 100 images"):
        dv.ReportConfig(images=101)
    result = dyvit("report", measured, "--images", 500)
    assert result.exit_code == 2 and len(result.output.strip().splitlines()) == 1


def test_a_failing_checkpoint_is_no_exported_artifact(copied):
    change(copied / "tiny.safetensors.eval.json", failures=["It gives NaN for 1 of 10 images."])
    quick(copied)
    page = (copied / "report.html").read_text()
    assert "Of 2 exported artifacts, " in page and "1 checkpoint failed a check." in page


def test_int8_in_the_graph_is_shown_with_the_fusions_of_the_runtime(copied, tmp_path):
    path = copied / "int8.onnx"
    photos = str(copied.parent / "photos")
    result = dyvit("export", copied / "tiny.safetensors", "--int8", "--calib", photos, "--no-gate", "-o", path)
    assert result.exit_code == 0, result.output
    found = verdicts(quick(copied), "int8.onnx")["Precision"]
    assert found.state == "pass" and found.headline == "int8 in the graph"
    assert found.lines[-1].startswith("in ONNX Runtime here, fused: ") and "Integer" in found.lines[-1]


def test_the_json_of_a_sweep_knows_its_artifacts(tmp_path):
    result = dyvit("sweep", tiny_checkpoint(tmp_path), "-o", tmp_path / "sweep", "--keep-ratios", "0.5", "--precisions",
                   "float32", "--backends", "onnx", "--batch", "1", "--seconds", "0.1", "--images", "4",
                   "--json", tmp_path / "sweep/rows.json")
    assert result.exit_code == 0, result.output
    (tmp_path / "sweep/sweep.json").unlink()
    report = quick(tmp_path / "sweep")
    [found] = [v for j in report.judgements for v in j.verdicts if v.name == "Speed" and v.source]
    assert found.source == "rows.json" and found.state != "open"


def test_the_path_of_a_checkpoint_above_a_sweep_is_relative_to_the_folder(tmp_path):
    from dyvit_deploy.report.records import _from_here
    (tmp_path / "run/sweep").mkdir(parents=True)
    (tmp_path / "run/tiny.safetensors").write_text("")
    assert _from_here("run/tiny.safetensors", tmp_path / "run/sweep", "sweep.json") == "../tiny.safetensors"
    assert _from_here("run/tiny.safetensors", tmp_path / "run/sweep", "sweep/sweep.json") == "tiny.safetensors"
    assert _from_here("gone/other.safetensors", tmp_path / "run/sweep", "sweep.json") == "other.safetensors"
    assert _from_here("/models/other.safetensors", tmp_path, "sweep.json") == "/models/other.safetensors"
