"""The content of the page: verdicts with their sources, origins, and escaped file names. Its look and behaviour in a
browser are tested in test_browser.py."""
import dataclasses
import html
import json
import shutil

import onnx
import pytest
from helpers import cached_export, dyvit, photo_folder, plan_file, tiny_checkpoint, tiny_model
from report_page import quick, text_of, verdicts

import dyvit_deploy as dv
from dyvit_deploy.artifacts.files import sha256
from dyvit_deploy.config import KeepRequest, LoadConfig
from dyvit_deploy.errors import ArtifactError, ConfigError, DataError
from dyvit_deploy.graph.read import graph_facts, set_facts
from dyvit_deploy.model.checkpoint import save_checkpoint

pytest.importorskip("jinja2", reason="Jinja2 is missing: pip install 'dyvit-deploy[report]'")


@pytest.fixture(scope="module")
def page(measured, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    report = dv.write_report(measured, out, dv.ReportConfig(str(measured.parent / "photos")))
    return report, out.read_text()


def test_every_verdict_has_its_figure_and_the_file_it_is_from(page):
    report, _ = page
    found = verdicts(report, "tiny.onnx")
    assert found["Parity"].state == "pass" and found["Parity"].source == "tiny.onnx.check.json"
    assert "100 % same class, 10 images" in found["Parity"].lines[1]
    assert found["Parity"].lines[1].endswith(", 95 % interval 72.25 % to 100 %")
    assert found["Accuracy"].source == "tiny.onnx.eval.json" and "as its checkpoint" in found["Accuracy"].lines
    assert found["Accuracy"].state == "warn" and "too few images (10): about " in found["Accuracy"].lines[-1]
    assert found["Precision"].state == "pass" and found["Precision"].headline == "float32, as claimed"
    assert found["Speed"].source == "bench.json" and "batch 4" in found["Speed"].lines[1]
    assert verdicts(report, "dense.onnx")["Speed"].headline == "the baseline"


def test_nothing_is_green_that_was_not_measured_and_the_command_measures_it(page, measured, copied, monkeypatch):
    found = verdicts(page[0], "plain.onnx")
    for name, verb in (("Parity", "check"), ("Accuracy", "eval"), ("Speed", "bench")):
        assert found[name].state == "open" and found[name].command.startswith(f"dyvit {verb} ")
    assert found["all"].headline == "not known yet"
    monkeypatch.chdir(copied)
    for name, more in (("Parity", []), ("Accuracy", []), ("Speed", ["--seconds", "0.2"])):
        words = found[name].command.replace("IMAGES", str(measured.parent / "photos")).split()[1:]
        assert dyvit(*words, *more).exit_code == 0
    after = verdicts(quick("."), "plain.onnx")
    assert all(after[name].state != "open" for name in ("Parity", "Accuracy", "Speed"))


def test_a_difference_and_a_drop_are_red(copied):
    path = copied / "tiny.onnx.check.json"
    values = json.loads(path.read_text())
    values["batches"][0]["failures"] = ["logits differ by 0.3"]
    path.write_text(json.dumps(values))
    path = copied / "tiny.safetensors.eval.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"top1": 1.0, "answers": None}))
    report = quick(copied)
    found = verdicts(report, "tiny.onnx")
    assert found["Parity"].state == "fail" and "batch 1: logits differ by 0.3" in found["Parity"].lines
    assert found["Accuracy"].state == "fail" and "At most 1 points may be lost." in found["Accuracy"].lines
    assert found["all"].headline == "do not ship" and not report and report.failures
    assert verdicts(quick(copied, max_drop=100), "tiny.onnx")["Accuracy"].state == "pass"


def test_agreeing_on_noise_or_with_itself_is_not_green(copied):
    dyvit("check", copied / "tiny.safetensors", copied / "plain.onnx", "--images", 4, "--json", copied / "noise.json")
    found = verdicts(quick(copied), "plain.onnx")["Parity"]
    assert found.state == "warn" and found.headline == "same, on noise"
    dyvit("check", copied / "plain.onnx", copied / "plain.onnx", "--images", 4, "--json", copied / "noise.json")
    assert verdicts(quick(copied), "plain.onnx")["Parity"].headline == "not checked"


def test_figures_of_a_file_that_has_changed_since_are_not_its_own(copied):
    proto = onnx.load(copied / "tiny.onnx")
    proto.doc_string = "another file"
    onnx.save(proto, copied / "tiny.onnx")
    found = verdicts(quick(copied), "tiny.onnx")
    for name in ("Parity", "Accuracy", "Speed"):
        assert found[name].state == "open" and "on another file" in found[name].headline


def test_a_graph_that_claims_another_precision_than_it_computes_in_is_found_out(copied):
    proto = onnx.load(copied / "tiny.onnx")
    set_facts(proto, dataclasses.replace(graph_facts(proto, "it"), precision="int8", gate="passed"))
    onnx.save(proto, copied / "tiny.onnx")
    found = verdicts(quick(copied), "tiny.onnx")
    assert found["Precision"].state == "fail" and "float32" in found["Precision"].lines[0]
    assert found["Parity"].state == "open"
    assert found["Parity"].lines == ("Its gate passed at export; those figures are not here.",)


def test_what_the_export_rejected_is_red(copied):
    proto = onnx.load(copied / "plain.onnx")
    set_facts(proto, dataclasses.replace(graph_facts(proto, "it"), gate="rejected"))
    onnx.save(proto, copied / "plain.rejected.onnx")
    assert verdicts(quick(copied), "plain.rejected.onnx")["Parity"].headline == "rejected at export"


def test_origin_follows_hashes_and_a_parent_that_changed_is_named(copied):
    quick(copied)
    before = text_of((copied / "report.html").read_text())
    assert f"sha256 {sha256(copied / 'tiny.safetensors')[:12]}" in before and "changed since" not in before
    model, facts = tiny_model(seed=3)
    save_checkpoint(copied / "tiny.safetensors", model, facts)
    (copied / "tiny-dense.safetensors").unlink()
    quick(copied)
    after = text_of((copied / "report.html").read_text())
    assert f"changed since: tiny.safetensors here has sha256 {sha256(copied / 'tiny.safetensors')[:12]}" in after
    assert "tiny-dense.safetensors not in this folder" in after
    assert "is about tiny-dense.safetensors, which is not in this folder" in after


def test_an_engine_is_below_its_graph_and_a_cycle_of_sidecars_ends(copied):
    plan_file(copied, source={"file": "tiny.onnx", "sha256": sha256(copied / "tiny.onnx")},
              products={"blocks.0.attn.qkv/MatMul": "float32"})
    quick(copied)
    page = (copied / "report.html").read_text().replace("<wbr>", "")
    assert page.index("engine.plan", page.index('id="origin"')) > page.index("tiny.onnx", page.index('id="origin"'))
    assert "as the graph asks, not yet verified on a device" in page and "dyvit build m.onnx" in page
    plan_file(copied, source={"file": "engine.plan", "sha256": sha256(copied / "engine.plan")})
    quick(copied)
    assert "engine.plan" in (copied / "report.html").read_text().replace("<wbr>", "")


def test_artifacts_without_kept_patches_get_a_note_instead_of_a_gallery(page):
    report, content = page
    # The checkpoint and the graph with tokens.
    assert content.count('class="gallery"') == 2
    # Each image is stored once for all artifacts.
    assert content.count("<image ") == 10
    assert content.count("<use ") == 20
    [note] = [line for line in report.notes if line.startswith("plain.onnx has no gallery")]
    assert "--with-tokens" in note and html.escape(note, quote=False) in html.unescape(content).replace("&", "&amp;")
    assert "stage 2: 2 of 16 patches" in content and "stage 0: 8 of 16 patches kept" in content


def test_reports_machines_and_commands_are_on_it(page, measured):
    content = text_of(page[1])
    machine = json.loads((measured / "bench.json").read_text())["machine"]
    assert machine["processor"] in content and "onnxruntime" in content
    assert f"dyvit eval '{measured}/tiny.onnx' --data" in content


def test_the_same_data_give_the_same_bytes(page, measured, tmp_path):
    again = dv.write_report(measured, tmp_path / "again.html", dv.ReportConfig(str(measured.parent / "photos")))
    assert (tmp_path / "again.html").read_text() == page[1] and again.kib < 5 * 1024


def test_without_images_or_without_running_there_are_no_galleries(measured, tmp_path):
    for config in (dv.ReportConfig(), dv.ReportConfig(str(measured.parent / "photos"), images=0)):
        report = dv.write_report(measured, tmp_path / "r.html", config)
        assert 'class="gallery"' not in (tmp_path / "r.html").read_text()
        assert any("add --data" in line for line in report.notes) == (config.data is None)


def test_the_command_prints_the_verdicts_and_always_exits_with_0(copied, tmp_path):
    (copied / "tiny.onnx.eval.json").unlink()
    result = dyvit("report", copied, "--no-run", "-o", tmp_path / "r.html", "--json", tmp_path / "r.json")
    assert result.exit_code == 0 and "not known yet" in result.output and "in a browser" in result.output
    saved = json.loads((tmp_path / "r.json").read_text())
    assert saved["dyvit"]["report"] == "report" and saved["dyvit"]["command"].startswith("dyvit report ")
    assert {row["artifact"] for row in saved["artifacts"]} >= {"tiny.onnx", "plain.onnx"}


def test_a_report_records_its_command_and_its_files(measured):
    stamp = json.loads((measured / "tiny.onnx.check.json").read_text())["dyvit"]
    assert stamp["report"] == "check" and stamp["format"] == 1 and stamp["version"] == dv.__version__
    assert stamp["command"].startswith(f"dyvit check '{measured}/tiny.safetensors' ")
    compared = (measured / "tiny.safetensors", measured / "tiny.onnx")
    assert stamp["files"] == {str(path): sha256(path) for path in compared}


def test_twins_in_two_folders_are_distinguished_by_their_hashes(copied):
    (copied / "old").mkdir()
    shutil.copy(copied / "plain.onnx", copied / "old/tiny.onnx")
    report = quick(copied)
    assert verdicts(report, "tiny.onnx")["Parity"].state == "pass"
    assert verdicts(report, "old/tiny.onnx")["Parity"].headline == "not checked"


def test_a_speed_whose_interval_touches_the_baselines_is_not_sure(copied):
    path = copied / "bench.json"
    values = json.loads(path.read_text())
    base = {t["batch"]: t["latency_ms_p50"] for t in values["timings"] if t["artifact"] == "dense.onnx"}
    for timing in values["timings"]:
        timing |= {"speedup": timing["speedup"] and 1.2, "stable": True}
        timing["ci95_ms"] = {"p50": [0.7 * base[timing["batch"]], 1.1 * base[timing["batch"]]]}
    path.write_text(json.dumps(values))
    found = verdicts(quick(copied), "tiny.onnx")["Speed"]
    assert found.state == "warn" and "intervals of the medians overlap" in " ".join(found.lines)
    for timing in values["timings"]:
        if timing["artifact"] == "tiny.onnx":
            timing["ci95_ms"] = {"p50": [0.5 * base[timing["batch"]], 0.6 * base[timing["batch"]]]}
    path.write_text(json.dumps(values))
    assert verdicts(quick(copied), "tiny.onnx")["Speed"].state == "pass"


def test_a_sweep_is_read_from_its_own_file(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path)
    dv.run_sweep(checkpoint, tmp_path / "sweep", dv.SweepConfig(
        keep_ratios=(1.0, 0.5), precisions=("float32",), backends=("onnx",), batches=(1,), seconds=0.1, images=4))
    report = quick(tmp_path)
    rows = [j for j in report.judgements if j.entry.key.startswith("sweep/") and "baseline" not in j.entry.key]
    speeds = [v for j in rows for v in j.verdicts if v.name == "Speed" and v.source == "sweep/sweep.json"]
    assert len(speeds) == 2
    (tmp_path / "sweep/sweep.json").write_text('{"format": 1}')
    assert any("is damaged" in line for line in quick(tmp_path).notes)


def test_a_sweep_is_judged_against_its_own_dense_model(tmp_path):
    """The dense model that was evaluated counts, not the baseline of the timings, which was not."""
    checkpoint, photos = tiny_checkpoint(tmp_path), photo_folder(tmp_path / "photos", 10, classes=5)
    folder = tmp_path / "sweep"
    dv.run_sweep(checkpoint, folder, dv.SweepConfig(
        keep_ratios=(1.0, 0.5), precisions=("float32",), backends=("onnx",), batches=(1,), data=str(photos),
        images=999, seconds=0.1))
    path = folder / "sweep.json"
    values = json.loads(path.read_text())
    assert values["artifacts"][0]["seen"] == {"data": str(photos), "evaluated": 10, "compared": 10}
    for row in values["latencies"]:
        row |= {"stable": False, "latency_ms_p90": 99.0, "speedup": 1.5}
    path.write_text(json.dumps(values))
    report = quick(folder)
    pruned, dense = verdicts(report, "keep0.5-fp32-onnx.onnx"), verdicts(report, "dense-float32.onnx")
    assert pruned["Accuracy"].state != "open" and "the dense model" in pruned["Accuracy"].lines[1]
    assert pruned["Accuracy"].lines[0].startswith("10 images") and "image by image" in pruned["Accuracy"].lines[2]
    assert pruned["Speed"].state == "warn" and "batch 1: the run did not settle" in pruned["Speed"].lines[-1]
    assert pruned["Speed"].command == ("dyvit bench keep0.5-fp32-onnx.onnx --baseline dense-float32.onnx --batch 1 "
                                       "--seconds 60 --json keep0.5-fp32-onnx.onnx.bench.json")
    assert dense["all"].headline == verdicts(report, "keep1.0-fp32-onnx.onnx")["all"].headline == "baseline"
    assert dense["Parity"].command.startswith("dyvit check ") and "tiny.safetensors dense-" in dense["Parity"].command
    [row] = [r for r in report.to_json()["artifacts"] if r["artifact"] == "keep0.5-fp32-onnx.onnx"]
    assert row["speed"]["command"] == pruned["Speed"].command
    assert "Of 1 exported artifact, " in (folder / "report.html").read_text()


def test_an_unsure_run_is_ignored_if_another_is_sure(copied):
    values = json.loads((copied / "bench.json").read_text())
    for name, stable in (("bench.json", False), ("longer.json", True)):
        for timing in values["timings"]:
            timing |= {"speedup": timing["speedup"] and 1.2, "stable": stable, "ci95_ms": None,
                       "latency_ms_p50": 5.0, "latency_ms_p90": 9.0 + stable}
        (copied / name).write_text(json.dumps(values))
        found = verdicts(quick(copied), "tiny.onnx")["Speed"]
        assert found.state == ("pass" if stable else "warn") and found.source == name
        assert ("--baseline dense.onnx --batch 1,4" in found.command) is not stable


def test_a_bad_baseline_is_shown_as_bad(copied):
    assert verdicts(quick(copied), "dense.onnx")["all"].headline == "baseline"
    path = copied / "dense.onnx.check.json"
    values = json.loads(path.read_text())
    values["batches"][0]["failures"] = ["logits differ by 0.3"]
    path.write_text(json.dumps(values))
    result = dyvit("report", copied, "--no-run")
    assert result.exit_code == 0 and "do not ship: dense.onnx: parity differs" in result.output
    assert "FAILED" not in result.output and dyvit("report", copied, "--no-run", "--strict").exit_code == 1
    path.unlink()
    # A pruned tiny model may be slower.
    for timed in copied.rglob("*bench*.json"):
        timed.unlink()
    assert dyvit("report", copied, "--no-run", "--strict").exit_code == 0


def test_facts_hashes_and_costs_are_short(page, copied):
    report, content = page
    digest = sha256(copied / "tiny.onnx")
    assert f'<code class="digest" title="{digest}">{digest}</code>' in content and "<details class=" in content
    assert not any("patches alike" in line for line in verdicts(report, "dense.onnx")["Parity"].lines)
    assert any("patches alike" in line for line in verdicts(report, "tiny.onnx")["Parity"].lines)
    # tiny.onnx costs less than tiny.safetensors.
    assert "exact rewrites lower the cost of an exported graph" in content
    for name in ("tiny.onnx", "plain.onnx", "dense.onnx"):
        (copied / name).unlink()
    quick(copied)
    assert "exact rewrites" not in (copied / "report.html").read_text()


def test_errors_have_types_of_this_package(measured, tmp_path):
    with pytest.raises(ArtifactError):
        dv.write_report(tmp_path / "no")
    with pytest.raises(ConfigError):
        dv.ReportConfig(images=-2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        dv.write_report(measured, tmp_path / "r.html", dv.ReportConfig(str(tmp_path / "empty")))


def test_an_artifact_is_compared_with_the_dense_one_that_saw_the_same_images(copied):
    """Also if there are several dense files."""
    shutil.copy(copied / "dense.onnx", copied / "a-dense-one.onnx")
    found = verdicts(quick(copied), "tiny.onnx")["Accuracy"]
    assert "as the dense model" in found.lines
    assert "the dense model" in verdicts(quick(copied), "tiny-dense.safetensors")["Accuracy"].lines


def test_of_several_dense_models_that_of_the_same_checkpoint_counts(copied):
    cached_export(copied / "tiny.safetensors", copied / "own.onnx", load=LoadConfig(keep=KeepRequest(ratio=1.0)))
    values = json.loads((copied / "dense.onnx.eval.json").read_text())
    for name, top1 in (("dense.onnx", 1.0), ("own.onnx", 0.5), ("tiny.onnx", 0.5)):
        stamp = values["dyvit"] | {"files": {name: sha256(copied / name)}}
        changed = {"artifact": name, "top1": top1, "dyvit": stamp, "answers": None}
        (copied / f"{name}.eval.json").write_text(json.dumps(values | changed))
    assert "as the dense model" in verdicts(quick(copied), "tiny.onnx")["Accuracy"].lines


def test_a_missing_comparison_with_the_dense_model_is_noted_with_the_command(copied):
    for name in ("dense.onnx", "tiny-dense.safetensors"):
        (copied / f"{name}.eval.json").unlink()
    found = verdicts(quick(copied), "tiny.onnx")["Accuracy"]
    assert "not compared with the dense model" in found.lines and "as its checkpoint" in found.lines
    assert found.command == "dyvit eval dense.onnx --data IMAGES --images 10 --json dense.onnx.eval.json"
