"""The rows of Ray's workers are those of one process."""
import json
import subprocess
import sys

import pytest
from helpers import ROOT, needs, photo_folder, tiny_checkpoint, tiny_graph

import dyvit_deploy as dv
from dyvit_deploy import optional
from dyvit_deploy.errors import BackendError, MissingDependency

needs_ray = needs("ray", "ray")


def test_without_ray_the_pip_command_is_named(tmp_path, monkeypatch):
    was = optional.importlib.import_module

    def absent(name, package=None):
        if name.split(".")[0] == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
        return was(name, package)
    monkeypatch.setattr(optional.importlib, "import_module", absent)
    photo_folder(tmp_path / "photos", 1)
    with pytest.raises(MissingDependency, match=r"dyvit-deploy\[ray\]"):
        dv.predict_images(tiny_checkpoint(tmp_path), tmp_path / "photos", dv.PredictConfig(1, runner="ray"))


def typed(*arguments):
    return subprocess.run([sys.executable, "-m", "dyvit_deploy", "predict", *map(str, arguments), "--runner", "ray"],
                          cwd=ROOT, capture_output=True, text=True)


@pytest.mark.ray
@needs_ray
def test_two_workers_give_the_same_file_and_print_nothing_else(tmp_path):
    graph, photos = tiny_graph(tmp_path), photo_folder(tmp_path / "photos", 30)
    (photos / "008.png").write_bytes(b"no image")
    out = tmp_path / "ray.csv"

    def stop(rows):
        raise KeyboardInterrupt
    # The run starts in this process and is resumed on Ray.
    with pytest.raises(KeyboardInterrupt):
        dv.predict_images(graph, photos, dv.PredictConfig(2, 4, csv=str(out)), watch=stop)
    result = typed(graph, photos, "--top", 2, "--batch", 4, "--csv", out, "--workers", 2, "--json", tmp_path / "r.json")
    assert result.returncode == 0, result.stderr
    dv.predict_images(graph, photos, dv.PredictConfig(2, 4, csv=str(tmp_path / "local.csv")))
    assert out.read_bytes() == (tmp_path / "local.csv").read_bytes()
    assert json.loads((tmp_path / "r.json").read_text())["resumed"] == 4
    assert result.stdout.startswith("tiny.onnx (ray)") and "ray" not in result.stdout.split("\n", 1)[1].replace(
        str(out), "")


@pytest.mark.ray
@needs_ray
def test_a_cluster_that_does_not_answer_is_one_sentence_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    photo_folder(tmp_path / "photos", 1)
    with pytest.raises(BackendError, match="check RAY_ADDRESS"):
        dv.predict_images(tiny_graph(tmp_path), tmp_path / "photos", dv.PredictConfig(1, runner="ray"))


@pytest.mark.ray
@needs_ray
def test_what_a_worker_refuses_is_the_same_sentence(tmp_path):
    result = typed(tiny_graph(tmp_path), photo_folder(tmp_path / "photos", 2), "--top", 9, "--workers", 1)
    assert result.returncode == 2 and "knows 5 classes" in result.stderr and "Traceback" not in result.stderr
