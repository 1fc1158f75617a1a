import importlib.util
import json
import shlex
from pathlib import Path

import pytest
from helpers import FEW_SCENES, SCENES, digit_scenes, dyvit

from dyvit_deploy.demo import quickstart
from dyvit_deploy.demo.quickstart import STUDENT, TEACHER, run_quickstart

pytest.importorskip("sklearn", reason="the demo data need scikit-learn: pip install 'dyvit-deploy[demo]'")


OPENVINO = importlib.util.find_spec("openvino") is not None


@pytest.fixture(scope="module", params=SCENES)
def report(request, tmp_path_factory):
    lines = []
    with digit_scenes(request.param), pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "SECONDS", 0.1)                          # the figures are not tested
        result = run_quickstart(tmp_path_factory.mktemp("quick") / "my start", say=lines.append)
    assert result.evals[0].images == request.param or request.param is None
    return result, lines


def one_of(report):
    """The share of one image more or less, where there are few of them."""
    images = report[0].evals[0].images
    return 1 / images if images == FEW_SCENES else 0


def test_every_artifact_computes_what_its_checkpoint_does(report):
    result, _ = report
    assert result and len(result.checks) == (5 if OPENVINO else 4)
    for row in result.rows[2:5]:
        assert row.agreement == 1.0
    assert [row.overlap for row in result.rows[3:5]] == [1.0, 1.0]


def test_int8_costs_at_most_three_tenths_of_a_point(report):
    student, int8 = report[0].rows[1], report[0].rows[5:]
    assert [row.artifact for row in int8] == ["digits-s-int8.onnx", *(["digits-s-int8.xml"] if OPENVINO else [])]
    for row in int8:
        assert row.top1 >= student.top1 - 0.003 - one_of(report) and row.overlap >= 0.95
        assert row.size_mib < student.size_mib / 2


def test_the_shipped_checkpoints_are_as_good_as_the_readme_says(report):
    dense, student = report[0].rows[:2]
    assert dense.top1 >= 0.96 and student.top1 >= dense.top1 - 0.01 - one_of(report)
    coverage = report[0].evals[1].coverage
    assert [stage.kept for stage in coverage] == [44, 31, 21]
    assert all(stage.box_coverage > stage.chance + 0.15 for stage in coverage)


def test_the_shipped_checkpoints_are_small_and_say_how_they_were_made():
    from dyvit_deploy.model.checkpoint import read_checkpoint
    for path in (STUDENT, TEACHER):
        assert path.stat().st_size <= 6e6
        training = read_checkpoint(path).facts.training
        assert training["data"] == "digits" and training["recipe"]["seed"] == 0


def test_everything_is_written_and_every_step_names_its_command(report):
    result, lines = report
    folder = {path.name for path in Path(result.folder).iterdir()}
    more = {"digits-s-int8.xml", "digits-s-int8.bin"} if OPENVINO else set()
    assert folder == more | {"digits-s.safetensors", "digits-s-dense.safetensors", "digits-s.onnx",
                             "digits-s-uint8.onnx", "digits-s-dense.onnx", "digits-s-int8.onnx", "quickstart.json",
                             "report.html"}
    count = 5 if OPENVINO else 4
    assert [line.split()[1] for line in lines] == [
        *["export"] * count, *["check"] * count, *["eval"] * (2 + count), "bench", "report"]
    saved = json.loads((Path(result.folder) / "quickstart.json").read_text())
    assert saved["commands"] == lines == list(result.commands)
    assert all(str(Path(result.folder)) in " ".join(shlex.split(line)) for line in lines)
    assert shlex.split(lines[-1]) == ["dyvit", "report", result.folder]    # the folder is one word, as in all of them
    assert shlex.split(saved["dyvit"]["command"])[-1] == result.folder
    assert saved["dyvit"]["files"] == dict(result.files) and len(result.files) == 2 + count
    assert saved["passed"] and len(saved["rows"]) == 2 + count


def test_its_json_elsewhere_knows_the_artifacts_too(report, monkeypatch, tmp_path):
    monkeypatch.setattr(quickstart, "run_quickstart", lambda *_, **__: report[0])
    assert dyvit("quickstart", "--json", tmp_path / "q.json").exit_code == 0
    assert json.loads((tmp_path / "q.json").read_text())["dyvit"]["files"] == dict(report[0].files)
