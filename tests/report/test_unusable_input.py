"""Files that are damaged, changed by hand or hostile, and wrong options: named, left out, and harmless."""
import dataclasses
import json
import os
import shutil
import sys

import onnx
import pytest
from helpers import dyvit, plan_file, tiny_model
from report_page import quick, text_of, verdicts

import dyvit_deploy as dv
from dyvit_deploy.model.checkpoint import save_checkpoint

pytest.importorskip("jinja2", reason="Jinja2 is missing: pip install 'dyvit-deploy[report]'")

JUNK = {"not ours.json": '{"timings": []}', "broken.json": '{"dyvit": ', "list.json": "[1, 2]", "deep.json": "[" * 9999,
        "older.json": '{"dyvit": {"report": "bench", "format": 0}}',
        "half.json": '{"dyvit": {"report": "bench", "format": 1, "version": "1", "command": "x", "files": {}}}',
        "nan.json": '{"dyvit": {"report": "eval", "format": 1, "version": "1", "command": "x", "files": {}}, '
                    '"artifact": "a", "data": "d", "images": 3, "top1": NaN, "top5": 1, '
                    '"calibration_error": 0, "failures": []}',
        "broken.onnx": "no graph", "broken.safetensors": "no tensors"}


def test_unusable_files_are_named_and_left_out(copied):
    for name, content in JUNK.items():
        (copied / name).write_text(content)
    (copied / "latin.json").write_bytes(b'{"dyvit": "\xff"}')
    result = dyvit("report", copied, "--no-run")
    page = text_of((copied / "report.html").read_text())
    assert result.exit_code == 0
    for name in (*JUNK, "latin.json"):
        [line] = [line for line in result.output.splitlines() if line.startswith(name)]
        assert len(line) > len(name) + 20 and line in page.replace("\n", " ")


@pytest.mark.parametrize("damage", [{"training": "none"}, {"lowered": {"kept": 3}}, {"parent": [1]}, {"versions": "1"}])
def test_facts_that_were_changed_by_hand_are_named(copied, damage):
    proto = onnx.load(copied / "plain.onnx")
    values = json.loads(proto.metadata_props[0].value) | damage
    proto.metadata_props[0].value = json.dumps(values)
    onnx.save(proto, copied / "changed.onnx")
    report = quick(copied)
    [field] = damage
    assert any(f"metadata in changed.onnx cannot be read (ArtifactFacts.{field}" in line for line in report.notes)
    assert "changed.onnx" not in {j.entry.key for j in report.judgements}


def test_a_plan_that_its_sidecar_does_not_describe_has_no_precision(copied):
    path = plan_file(copied)
    path.write_bytes(b"ftrt".ljust(path.stat().st_size, b"x"))
    found = verdicts(quick(copied), "engine.plan")["Precision"]
    assert found.state == "open" and "of another plan" in found.lines[0]


def test_other_json_of_dyvit_is_ignored(copied):
    dyvit("inspect", copied / "tiny.onnx", "--json", copied / "inspect.json")
    (copied / "ranges.json").write_text('{"kind": "dyvit ranges", "format": 1}')
    assert not [line for line in quick(copied).notes if "inspect.json" in line or "ranges.json" in line]


def test_damaged_images_are_named(copied):
    (copied.parent / "photos/class0/bad.png").write_bytes(b"no image")
    report = dv.write_report(copied, config=dv.ReportConfig(str(copied.parent / "photos"), images=11))
    assert any("bad.png" in line and "left out of the galleries" in line for line in report.notes)


def test_no_name_adds_anything_to_the_page(measured, tmp_path):
    evil = '"><img src=x onerror=alert(1)><script>alert(2)</script>{{ 7*7 }}\u202e'
    folder = tmp_path / "a<b>&'"
    folder.mkdir()
    model, facts = tiny_model()
    save_checkpoint(folder / "x<svg onload=alert(3)>.safetensors", model,
                    dataclasses.replace(facts, class_names=(evil,) * 5, training={"data": evil}))
    for name in ("tiny.onnx", "tiny.onnx.check.json"):
        shutil.copy(measured / name, folder)
    path = folder / "tiny.onnx.check.json"
    values = json.loads(path.read_text())
    values["dyvit"]["command"], values["reference"], values["notes"] = evil, evil, [evil]
    path.write_text(json.dumps(values))
    (folder / os.fsdecode(b"\xff<i>.json")).write_text("{}")
    dv.write_report(folder, config=dv.ReportConfig(str(measured.parent / "photos")))
    page = (folder / "report.html").read_text()
    for tag in ("<img", "<script>alert", "<svg onload", "<i>.json", "<b>&"):
        assert tag not in page
    assert "&lt;script&gt;alert(2)" in page and "{{ 7*7 }}" in page
    assert page.count("<script>") == 1


@pytest.mark.parametrize("arguments, code, words", [
    (["{tmp}/nowhere"], 1, "does not exist"), (["{tmp}"], 1, "holds no artifact and no report"),
    (["{dir}/tiny.onnx"], 1, "not a readable folder"), (["{dir}", "-o", "{dir}/tiny.onnx"], 2, "written as .html"),
    (["{dir}", "-o", "/proc/nowhere/r.html"], 1, "Nothing can be written"),
    (["{dir}", "-o", "{tmp}/r.html", "--data", "{tmp}/no"], 1, "neither an image folder"),
    (["{dir}", "-o", "{tmp}/r.html", "--images", "-1"], 2, "0 or more"),
    (["{dir}", "-o", "{tmp}/r.html", "--max-drop", "-1"], 2, "0 to 100"),
])
def test_mistakes_are_one_sentence(measured, tmp_path, arguments, code, words):
    given = [a.format(tmp=tmp_path, dir=measured) for a in arguments]
    result = dyvit("report", *given)
    [line] = result.output.strip().splitlines()
    assert result.exit_code == code and words in line and line.startswith("dyvit: ")


def test_without_jinja2_the_command_that_installs_it_is_named(measured, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = dyvit("report", measured)
    assert result.exit_code == 1 and "pip install 'dyvit-deploy[report]'" in result.output
