"""The rows of a prediction: their content, their order, and errors."""
import csv
import json
import os
import tracemalloc

import numpy as np
import pytest
from fake_runner import FakeRunner
from helpers import dyvit, photo_folder, tiny_checkpoint, tiny_graph
from PIL import Image

import dyvit_deploy as dv
from dyvit_deploy.data.preprocess import resize_and_crop
from dyvit_deploy.data.reading import decode
from dyvit_deploy.errors import ConfigError
from dyvit_deploy.evaluation.metrics import softmax
from dyvit_deploy.predict import predictor
from dyvit_deploy.predict.outputs import write_csv
from dyvit_deploy.predict.report import Prediction, columns
from dyvit_deploy.runners.base import Outputs, TensorSpec, run_in_batches
from dyvit_deploy.runners.open import open_runner


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return tiny_graph(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path):
    photo_folder(tmp_path / "photos", 5)
    return photo_folder(tmp_path / "photos", 6, classes=2, seed=1)


@pytest.fixture
def grey_runner(monkeypatch):
    """Opens, for any path, a model of two classes whose logits are 0 and the mean of its 4 x 4 pixel image."""
    def opened(path, **rest):
        def answer(feed):
            mean = feed.mean(axis=(1, 2, 3), dtype=np.float32)
            return Outputs(np.stack([np.zeros_like(mean), np.where(mean == 255, np.nan, mean)], axis=1))
        return FakeRunner(answer, TensorSpec("images", "uint8", (batch[0], 4, 4, 3)), name="grey")
    batch = [None]
    monkeypatch.setattr(predictor, "open_runner", opened)
    return batch


def rows_of(file):
    with open(file, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def grey(folder, **greys):
    folder.mkdir(exist_ok=True)
    for name, value in greys.items():
        Image.new("RGB", (4, 4), (value,) * 3).save(folder / f"{name}.png")
    return folder


HOSTILE = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx", "'x", "''=x", "\uff1d1", "a\rb", "a\nb", "a\r\nb",
           'a"b', "a,b", "a;=b", "plain", "\r", ""]


def test_every_name_is_one_cell_that_no_spreadsheet_takes_for_a_formula_and_can_be_recovered(tmp_path):
    rows = [Prediction(name, (name, "dog"), (0.75, 0.25), error=name) for name in HOSTILE]
    write_csv(tmp_path / "out.csv", [rows[:4], rows[4:]], 2)
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        header, *found = csv.reader(file)
    assert header == columns(2) and [len(row) for row in found] == [6] * len(HOSTILE)
    for name, row in zip(HOSTILE, found):
        for cell in (row[0], row[1], row[5]):
            assert cell[:1] not in [*"=+-@\t\r\n\uff1d"] and cell.removeprefix("'") == name
        assert row[2:5] == ["0.75", "dog", "0.25"]
    assert b"\r\n" not in (tmp_path / "out.csv").read_bytes().replace(b'a\r\nb', b"")


@pytest.mark.parametrize("kind", ["checkpoint", "graph"])
def test_rows_are_what_the_local_runner_computes(tmp_path, graph, photos, kind):
    artifact = graph if kind == "graph" else tiny_checkpoint(tmp_path)
    report = dv.predict_images(artifact, photos, dv.PredictConfig(top=3, batch=4, csv=str(tmp_path / "out.csv")))
    rows = rows_of(tmp_path / "out.csv")
    assert report and (report.images, report.failed, report.resumed) == (11, 0, 0)
    assert [row["image"] for row in rows] == sorted(map(str, photos.rglob("*.png")))
    assert list(rows[0]) == ["image", "class_1", "probability_1", "class_2", "probability_2", "class_3",
                             "probability_3", "error"]
    with open_runner(artifact) as runner:
        images = np.stack([resize_and_crop(decode(row["image"]), runner.image_spec()) for row in rows])
        shares = softmax(run_in_batches(runner, images, 4).logits).astype(np.float32)
    for row, share in zip(rows, shares):
        best = np.argsort(-share, kind="stable")[:3]
        assert [row[f"class_{k}"] for k in (1, 2, 3)] == [str(i) for i in best]
        assert [np.float32(row[f"probability_{k}"]) for k in (1, 2, 3)] == share[best].tolist()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("out")) == ["out.csv"]


def test_classes_have_their_names_where_the_artifact_knows_them(tmp_path, photos):
    from dyvit_deploy.model.checkpoint import load_model, save_checkpoint
    model, facts = load_model(tiny_checkpoint(tmp_path))[:2]
    import dataclasses
    named = tmp_path / "named.safetensors"
    save_checkpoint(named, model, dataclasses.replace(facts, class_names=("ant", "bee", "cat", "dog", "elk")))
    seen = []
    dv.predict_images(named, photos, dv.PredictConfig(top=5), watch=seen.extend)
    assert all(sorted(row.classes) == ["ant", "bee", "cat", "dog", "elk"] for row in seen) and len(seen) == 11
    assert all(sum(row.probabilities) == pytest.approx(1) for row in seen)


def test_a_file_names_the_classes_of_rows_and_is_refused_if_it_is_of_another_model(tmp_path, graph, photos):
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\ndog\nelk\n")
    numbers, names = [], []
    dv.predict_images(graph, photos, dv.PredictConfig(top=5), watch=numbers.extend)
    dv.predict_images(graph, photos, dv.PredictConfig(top=5, labels=str(tmp_path / "labels.txt")), watch=names.extend)
    assert [tuple("01234"[("ant", "bee", "cat", "dog", "elk").index(name)] for name in row.classes)
            for row in names] == [row.classes for row in numbers]
    (tmp_path / "labels.txt").write_text("ant\nbee\n")
    result = dyvit("predict", graph, photos, "--labels", tmp_path / "labels.txt", "--csv", tmp_path / "o.csv")
    assert result.exit_code == 1 and "has 2 names, and the model has 5 classes" in result.stderr
    assert not (tmp_path / "o.csv").exists()


def test_rows_with_other_names_are_not_resumed(tmp_path, graph, photos):
    from dyvit_deploy.predict.run import _identity
    seen = []
    for text in ("abcde", "edcba"):
        (tmp_path / "labels.txt").write_text("\n".join(text))
        labels = str(tmp_path / "labels.txt")
        seen.append(_identity(graph, ["photos"], dv.PredictConfig(labels=labels), dv.LoadConfig()))
    assert seen[0] != seen[1] and "labels" not in _identity(graph, ["photos"], dv.PredictConfig(), dv.LoadConfig())


@pytest.mark.parametrize("fixed", [None, 3])
def test_what_cannot_be_read_is_a_row_with_its_error_and_stops_nothing(tmp_path, monkeypatch, grey_runner, fixed):
    grey_runner[0] = fixed
    folder = grey(tmp_path / "in", a=10, c=255, f=0)
    (folder / "b.jpg").write_bytes(b"no image")
    whole = (folder / "a.png").read_bytes()
    (folder / "d.png").write_bytes(whole[:len(whole) // 2])
    # 200 million pixels in a few kilobytes.
    Image.new("1", (20_000, 10_000)).save(folder / "e.png")
    os.symlink("gone", folder / "g.png")
    result = dyvit("predict", __file__, folder, "--top", 1, "--batch", 2, "--csv", tmp_path / "o.csv")
    rows = rows_of(tmp_path / "o.csv")
    assert result.exit_code == 0 and [row["image"][-5] for row in rows] == list("abcdefg")
    errors = {row["image"][-5]: row["error"] for row in rows if row["error"]}
    assert errors["b"] == "it is not an image of a known format" and "NaN" in errors["c"] and errors["d"]
    assert "178,956,970 pixels" in errors["e"] and "No such file" in errors["g"] and set(errors) == set("bcdeg")
    assert [row["class_1"] for row in rows] == ["1", "", "", "", "", "0", ""]
    assert "No prediction for 5 images" in result.stderr and "b.jpg: it is not an image" in result.stderr


def test_a_long_thin_image_is_refused_before_it_fills_the_memory(tmp_path, graph):
    Image.new("RGB", (1, 60_000)).save(tmp_path / "a.jpg")
    Image.new("1", (1, 10_000_000)).save(tmp_path / "b.png")
    Image.new("RGB", (50, 50)).save(tmp_path / "c.jpg")
    seen = []
    report = dv.predict_images(graph, [tmp_path], dv.PredictConfig(top=1), watch=seen.extend)
    assert report.failed == 1 and "too long and thin" in seen[1].error and not seen[0].error


def test_only_errors_are_exit_code_1(tmp_path, graph):
    (tmp_path / "a.png").write_bytes(b"x")
    result = dyvit("predict", graph, tmp_path / "a.png", "--csv", tmp_path / "o.csv")
    assert result.exit_code == 1 and len(rows_of(tmp_path / "o.csv")) == 1


def test_rows_are_shown_as_they_come_with_the_same_data_where_no_file_is_named(tmp_path, graph, photos):
    (photos / "zz\x1b[2J.png").write_bytes(b"x")
    shown = dyvit("predict", graph, photos, photos / "000.png", "--top", 2, "--batch", 4, "--json", tmp_path / "r.json")
    dyvit("predict", graph, photos, photos / "000.png", "--top", 2, "--batch", 4, "--csv", tmp_path / "o.csv")
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["image", "class_1", "probability_1", "class_2", "probability_2", "error"]
    assert "\x1b" not in shown.stdout
    for line, row in zip(lines[1:], rows_of(tmp_path / "o.csv")):
        if not row["error"]:
            assert line.split() == [value for value in row.values() if value]
    assert len(lines) == 14 and json.loads((tmp_path / "r.json").read_text())["failed"] == 1


def test_parquet_has_the_rows_of_the_csv_in_row_groups(tmp_path, monkeypatch, graph, photos):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is missing: pip install 'dyvit-deploy[predict]'")
    from dyvit_deploy.predict import outputs
    monkeypatch.setattr(outputs, "GROUP", 4)
    (photos / "broken.png").write_bytes(b"x")
    config = dv.PredictConfig(top=2, batch=5, csv=str(tmp_path / "o.csv"), parquet=str(tmp_path / "o.parquet"))
    dv.predict_images(graph, photos, config)
    file = parquet.ParquetFile(tmp_path / "o.parquet")
    assert [str(kind) for kind in file.schema_arrow.types] == ["string", *["string", "float"] * 2, "string"]
    assert file.num_row_groups == 3 and b"sha" not in file.schema_arrow.metadata[b"dyvit"]
    table, rows = file.read().to_pylist(), rows_of(tmp_path / "o.csv")
    assert [{k: "" if v is None else v if isinstance(v, str) else str(np.float32(v)) for k, v in row.items()}
            for row in table] == rows
    assert [row["class_1"] for row in table if row["error"]] == [None]


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, grey_runner):
    grey(tmp_path, one=7)
    for folder, count in (("few", 200), ("many", 3000)):
        for i in range(count):
            place = tmp_path / folder / f"{i // 100:02d}"
            place.mkdir(parents=True, exist_ok=True)
            os.link(tmp_path / "one.png", place / f"{i % 100:02d}.png")

    def peak(folder):
        tracemalloc.start()
        report = dv.predict_images(__file__, tmp_path / folder, dv.PredictConfig(1, csv=str(tmp_path / "o.csv")))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used, report.images
    # The first call imports libraries.
    peak("few")
    (few, _), (many, images) = peak("few"), peak("many")
    assert images == 3000 and many < few + 200_000


def test_images_are_read_no_further_ahead_than_the_next_batch(tmp_path, monkeypatch, grey_runner):
    from dyvit_deploy.data.listing import ImagePlace
    read, behind = [], []
    monkeypatch.setattr(ImagePlace, "read", lambda place, was=ImagePlace.read: (read.append(1), was(place))[1])
    folder = grey(tmp_path, **{f"i{n:03d}": n for n in range(100)})
    done = []

    def watch(rows):
        done.extend(rows)
        behind.append(len(read) - len(done))
    dv.predict_images(__file__, folder, dv.PredictConfig(1, batch=5), watch=watch)
    assert len(done) == 100 and max(behind) <= 10


def test_the_default_asks_for_no_more_classes_than_there_are(tmp_path, grey_runner):
    folder = grey(tmp_path, i0=10, i1=200)
    rows = []
    dv.predict_images(__file__, folder, dv.PredictConfig(), watch=rows.extend)
    assert [len(row.classes) for row in rows] == [2, 2]
    with pytest.raises(ConfigError, match="knows 2 classes"):
        dv.predict_images(__file__, folder, dv.PredictConfig(top=6))


@pytest.mark.parametrize("options, code, message", [
    (["--top", 6], 2, "knows 5 classes"), (["--top", 0], 2, "--top must be at least 1"),
    (["--batch", 0], 2, "--batch must be at least 1"), (["--csv", "o.txt"], 2, "--csv writes a .csv file"),
    (["--parquet", "o.csv"], 2, "--parquet writes a .parquet file"), (["--csv", "photos"], 2, "--csv writes"),
    (["--csv", "photos/000.png/o.csv"], 1, "Nothing can be written"), (["--runner", "spark"], 2, "Choose one of"),
    (["--workers", 2], 2, "--workers is for --runner ray"), (["nowhere/"], 1, "neither an image"),
    (["--json", "o.csv"], 2, "written as .json")])
def test_bad_input_is_one_sentence_before_any_work(tmp_path, monkeypatch, graph, photos, options, code, message):
    monkeypatch.chdir(tmp_path)
    result = dyvit("predict", graph, "photos", "--top", 1, *options)
    assert result.exit_code == code and message in result.stderr and not result.stdout
    assert not list(tmp_path.glob("o*"))


@pytest.mark.parametrize("options, message", [
    (["--csv", "o.csv", "--json", "o.csv"], "written as .json"),
    (["--csv", "o.csv", "--json", "r.json"], "the rows go to"),
    (["--parquet", "o.parquet", "--json", "p.json"], "the rows go to"),
    (["--csv", "o.csv", "--parquet", "to-csv.parquet"], "both write .*o.csv"),
    (["--csv", "./in/../o.csv", "--json", "r.json"], "the rows go to")])
def test_no_two_outputs_are_one_file_links_followed(tmp_path, monkeypatch, graph, photos, options, message):
    import re
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for link, target in (("r.json", "o.csv"), ("p.json", "o.parquet"), ("to-csv.parquet", "o.csv")):
        os.symlink(target, link)
    result = dyvit("predict", graph, "photos", "--top", 1, *options)
    assert result.exit_code == 2 and re.search(message, result.stderr.replace("\n", "")) and not result.stdout
    assert not list(tmp_path.glob("o.*"))


def test_an_artifact_that_is_none_is_one_sentence(tmp_path, photos):
    for name, message in (("gone.onnx", "does not exist"), ("photos", "is a folder")):
        result = dyvit("predict", tmp_path / name, photos)
        assert result.exit_code == 1 and message in result.stderr
