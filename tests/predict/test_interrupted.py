"""An interrupted run is resumed, with the same results as a run without interruption."""
import os
import signal
import subprocess
import sys

import pytest
from helpers import HANGS, ROOT, dyvit, photo_folder, tiny_graph

import dyvit_deploy as dv
from dyvit_deploy.errors import ArtifactError, ConfigError
from dyvit_deploy.predict.partial import PartialFile

# Says so and waits to be stopped in the middle of a batch, after so many others.
WAITING = """
import sys, threading
from dyvit_deploy.predict.predictor import Predictor
was, left = Predictor.predict, [int(sys.argv[1])]
def predict(self, images):
    if not left[0]:
        print("waiting", flush=True)
        threading.Event().wait()
    left[0] -= 1
    return was(self, images)
Predictor.predict = predict
from dyvit_deploy.cli.main import main
main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return tiny_graph(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path):
    return photo_folder(tmp_path / "photos", 90)


def whole(graph, photos, folder, batch=4):
    """The file of a run without interruption."""
    dv.predict_images(graph, photos, dv.PredictConfig(2, batch, csv=str(folder / "whole.csv")))
    return (folder / "whole.csv").read_bytes()


def stopped_after(batches, graph, photos, out, **options):
    """Raises KeyboardInterrupt after so many batches."""
    seen = []

    def watch(rows):
        seen.append(rows)
        if len(seen) == batches:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        dv.predict_images(graph, photos, dv.PredictConfig(2, 4, csv=str(out), **options), watch=watch)


def started(batches, graph, photos, out):
    """A process that is in the middle of the batch after so many."""
    command = [sys.executable, "-c", WAITING, str(batches), "predict", graph, photos, "--top", "2", "--batch", "4",
               "--csv", out]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "waiting\n"
    return process


def test_ctrl_c_and_kill_9_cost_at_most_a_batch_and_change_no_byte(tmp_path, graph, photos):
    out, partial = tmp_path / "out.csv", tmp_path / "out.csv.partial"
    for signal_number, batches in ((signal.SIGINT, 3), (signal.SIGKILL, 5)):
        process = started(batches, graph, photos, out)
        process.send_signal(signal_number)
        _, output = process.communicate(timeout=HANGS)
        assert not out.exists() and partial.exists()
        assert process.returncode == (130 if signal_number == signal.SIGINT else -signal.SIGKILL)
        assert ("the same command goes on from there" in output) == (signal_number == signal.SIGINT)
        assert "Traceback" not in output
    report = dv.predict_images(graph, photos, dv.PredictConfig(2, 4, csv=str(out)))
    assert report.images == 90 and report.resumed == 4 * (3 + 5) and not report.notes
    assert out.read_bytes() == whole(graph, photos, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv", "photos", "whole.csv"]


@pytest.mark.parametrize("torn", [b'[["photos/0', b"\0" * 700, b'[["a","",["0"],[1.0],""]]', b"{}\n[]\n"])
def test_a_torn_or_damaged_end_is_dropped(tmp_path, graph, photos, torn):
    out = tmp_path / "out.csv"
    stopped_after(3, graph, photos, out)
    with open(f"{out}.partial", "ab") as file:
        file.write(torn)
    report = dv.predict_images(graph, photos, dv.PredictConfig(2, 4, csv=str(out)))
    assert report.resumed == 12 and out.read_bytes() == whole(graph, photos, tmp_path)


def test_a_torn_first_line_begins_anew(tmp_path, graph, photos):
    (tmp_path / "out.csv.partial").write_bytes(b'{"dyvit":"pre')
    dv.predict_images(graph, photos, dv.PredictConfig(2, 4, csv=str(tmp_path / "out.csv")))
    assert (tmp_path / "out.csv").read_bytes() == whole(graph, photos, tmp_path)


@pytest.mark.parametrize("change, kept", [("added first", 0), ("added in between", 8), ("added last", 12),
                                          ("removed", 4), ("rewritten", 8)])
def test_images_that_came_went_or_changed_meanwhile_are_predicted_as_they_are(tmp_path, graph, photos, change, kept):
    out = tmp_path / "out.csv"
    stopped_after(3, graph, photos, out)
    first = (photos / "000.png").read_bytes()
    if change == "removed":
        (photos / "005.png").unlink()
    else:
        name = {"added first": "!", "added in between": "009b", "added last": "zz", "rewritten": "008"}[change]
        (photos / f"{name}.png").write_bytes(first)
    report = dv.predict_images(graph, photos, dv.PredictConfig(2, 4, csv=str(out)))
    assert report.resumed == kept and bool(report.notes) == (change != "added last")
    assert out.read_bytes() == whole(graph, photos, tmp_path)


def test_files_that_could_not_be_written_at_the_end_cost_no_work(tmp_path, monkeypatch, graph, photos):
    from dyvit_deploy.predict import predictor, run
    out = tmp_path / "out.csv"
    monkeypatch.setattr(run, "write_csv", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        dv.predict_images(graph, photos, dv.PredictConfig(2, 4, csv=str(out)))
    monkeypatch.undo()
    # The artifact must not be opened.
    monkeypatch.setattr(predictor, "open_runner", None)
    report = dv.predict_images(graph, photos, dv.PredictConfig(2, 4, csv=str(out)))
    assert report.resumed == report.images == 90 and report.images_per_sec == 0


@pytest.mark.parametrize("other, message", [({"top": 3}, "another --top"), ({"batch": 8}, "another --batch"),
                                            ({"orient": True}, "another --orient"),
                                            ({"sources": "more"}, "other images")])
def test_another_command_does_not_destroy_the_work(tmp_path, graph, photos, other, message):
    out = tmp_path / "out.csv"
    stopped_after(3, graph, photos, out)
    before = (tmp_path / "out.csv.partial").read_bytes()
    sources = photo_folder(tmp_path / other.pop("sources"), 2) if "sources" in other else photos
    with pytest.raises(ConfigError, match=message):
        dv.predict_images(graph, sources, dv.PredictConfig(**({"top": 2, "batch": 4, "csv": str(out)} | other)))
    assert (tmp_path / "out.csv.partial").read_bytes() == before
    assert sorted(p.name for p in tmp_path.glob("out*")) == ["out.csv.partial"]


def test_another_artifact_is_refused_by_its_content_not_its_name(tmp_path, graph, photos):
    stopped_after(3, graph, photos, tmp_path / "out.csv")
    other = tiny_graph(tmp_path, 0.7)
    result = dyvit("predict", other, photos, "--top", 2, "--batch", 4, "--csv", tmp_path / "out.csv")
    assert result.exit_code == 2 and "another artifact" in result.stderr
    same = tmp_path / "copy.onnx"
    same.write_bytes(graph.read_bytes())
    assert dv.predict_images(same, photos, dv.PredictConfig(2, 4, csv=str(tmp_path / "out.csv"))).resumed == 12


def test_another_description_of_a_plan_is_another_artifact(tmp_path):
    from dyvit_deploy.config import LoadConfig
    from dyvit_deploy.predict.run import _identity
    plan, sidecar, seen = tmp_path / "engine.plan", tmp_path / "engine.plan.json", []
    plan.write_bytes(b"plan")
    for text in (None, '{"class_names": ["ant"]}', '{"class_names": ["bee"]}'):
        if text:
            sidecar.write_text(text)
        seen.append(_identity(plan, ["photos"], dv.PredictConfig(), LoadConfig())["artifact"])
    assert len(set(seen)) == 3


def test_two_runs_do_not_write_the_same_file(tmp_path, graph, photos):
    out = tmp_path / "out.csv"

    def watch(rows):
        result = dyvit("predict", graph, photos, "--top", 2, "--batch", 4, "--csv", out)
        assert result.exit_code == 2 and f"Another dyvit is writing {out}" in result.stderr
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        dv.predict_images(graph, photos, dv.PredictConfig(2, 4, csv=str(out)), watch=watch)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv.partial", "photos"]


def test_a_finished_file_stays_until_the_new_one_is_whole(tmp_path, graph, photos):
    out = tmp_path / "out.csv"
    out.write_text("old")
    stopped_after(3, graph, photos, out)
    assert out.read_text() == "old"
    dv.predict_images(graph, photos, dv.PredictConfig(2, 4, csv=str(out)))
    assert out.read_bytes() == whole(graph, photos, tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_one_sentence_and_leaves_what_is_done(tmp_path, monkeypatch, graph, photos):
    out = tmp_path / "out.csv"
    stopped_after(3, graph, photos, out)
    was = PartialFile.append

    def append(self, places, rows):
        whole = self._file
        with open("/dev/full", "wb", 0) as self._file:
            try:
                was(self, places, rows)
            finally:
                self._file = whole
    monkeypatch.setattr(PartialFile, "append", append)
    result = dyvit("predict", graph, photos, "--top", 2, "--batch", 4, "--csv", out)
    assert result.exit_code == 1 and "No space left on device" in result.stderr
    assert [p.name for p in tmp_path.glob("out*")] == ["out.csv.partial"]
    monkeypatch.undo()
    assert dv.predict_images(graph, photos, dv.PredictConfig(2, 4, csv=str(out))).resumed == 12


@pytest.mark.parametrize("place, message", [("folder", "Is a directory"), ("gone/p", "No such file")])
def test_a_partial_file_that_cannot_be_opened_is_one_sentence(tmp_path, place, message):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match=rf"could not be written .{message}"):
        PartialFile(tmp_path / place, {}).__enter__()


def test_a_disk_that_is_full_from_the_start_is_named_and_left_as_it_was(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, hard))
    try:
        with pytest.raises(ArtifactError, match=r"out\.csv\.partial could not be written \(File too large\)"):
            PartialFile(tmp_path / "out.csv.partial", {"top": 1}).__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out.csv.partial").exists()
