"""The predictions of the galleries: which are judged, and the chunks in which images run."""
import shutil

import pytest
from helpers import tiny_model

import dyvit_deploy as dv
from dyvit_deploy.errors import DataError
from dyvit_deploy.model.checkpoint import save_checkpoint
from dyvit_deploy.report import gallery

pytest.importorskip("jinja2", reason="Jinja2 is missing: pip install 'dyvit-deploy[report]'")


@pytest.fixture
def named(tmp_path, measured):
    """A checkpoint that knows the classes of the photos by name."""
    import dataclasses
    model, facts = tiny_model()
    shutil.copytree(measured.parent / "photos", tmp_path / "photos")
    names = tuple(sorted(p.name for p in (tmp_path / "photos").iterdir()))
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run/named.safetensors", model, dataclasses.replace(facts, class_names=names[::-1]))
    return tmp_path


def written(folder, images=10):
    report = dv.write_report(folder / "run", config=dv.ReportConfig(str(folder / "photos"), images=images))
    return report, (folder / "run/report.html").read_text()


def test_predictions_are_judged_by_name(named):
    report, page = written(named)
    wrong, right = page.count('<span class="fail"><bdi>'), page.count("<span><bdi>")
    assert wrong and wrong + right == 10 and not [n for n in report.notes if "right" in n]


def test_classes_that_a_model_does_not_know_are_not_judged(named):
    (named / "photos/class0").rename(named / "photos/cat")
    report, page = written(named)
    assert ", not <bdi>" not in page and ", but it is" not in page
    [note] = [line for line in report.notes if "do not say which predictions are right" in line]
    assert "'cat'" in note


def test_a_file_names_the_classes_that_are_shown_and_leaves_judgement_to_the_artifact(named):
    _, before = written(named)
    (named / "labels.txt").write_text("\n".join(f"kind{i}" for i in range(5)))
    config = dv.ReportConfig(str(named / "photos"), labels=str(named / "labels.txt"))
    dv.write_report(named / "run", config=config)
    page = (named / "run/report.html").read_text()
    assert "<bdi>kind" in page and "<bdi>class0" not in page
    assert page.count('<span class="fail"><bdi>') == before.count('<span class="fail"><bdi>')
    # Equal names of different classes do not make a wrong prediction right.
    (named / "labels.txt").write_text("same\n" * 5)
    dv.write_report(named / "run", config=config)
    again = (named / "run/report.html").read_text()
    assert again.count('<span class="fail"><bdi>') == before.count('<span class="fail"><bdi>')
    (named / "labels.txt").write_text("one")
    with pytest.raises(DataError, match="has 1 names, and the model has 5 classes"):
        dv.write_report(named / "run", config=config)


def test_images_run_in_chunks(named, monkeypatch):
    sizes = []
    view = gallery.view_images

    def counted(runner, facts, images):
        sizes.append(len(images))
        return view(runner, facts, images)
    monkeypatch.setattr(gallery, "view_images", counted)
    monkeypatch.setattr(gallery, "CHUNK", 4)
    _, page = written(named)
    assert sizes == [4, 4, 2] and page.count("<use ") == 10
