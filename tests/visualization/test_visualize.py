"""dyvit visualize: files, names, sheets, and errors of one sentence."""
import numpy as np
import pytest
from helpers import dyvit, photo_folder, tiny_checkpoint, tiny_graph
from PIL import Image, ImageSequence

import dyvit_deploy as dv
from dyvit_deploy.errors import ConfigError
from dyvit_deploy.visualization import drawings
from dyvit_deploy.visualization.figures import Strip

pytest.importorskip("matplotlib", reason="pip install 'dyvit-deploy[report]'")


@pytest.fixture
def graph(tmp_path):
    return tiny_graph(tmp_path)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_figure_per_image_and_a_contact_sheet(tmp_path, graph):
    photo_folder(tmp_path / "photos", 3)
    result = dyvit("visualize", graph, tmp_path / "photos", "-o", tmp_path / "masks")
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "masks") == ["000.png", "001.png", "002.png", "contact-sheet.png"]
    assert "3 figures in" in result.output and "contact-sheet.png" in result.output
    with Image.open(tmp_path / "masks/000.png") as image:
        assert image.size == (10 + 4 * 202, 192 + 54)


def test_a_file_names_the_classes_of_figures(tmp_path, graph):
    photo_folder(tmp_path / "photos", 1)
    (tmp_path / "labels.json").write_text('["ant", "ant", "ant", "ant", "ant"]')
    result = dyvit("visualize", graph, tmp_path / "photos", "-o", tmp_path / "m", "--format", "svg", "--labels",
                   tmp_path / "labels.json")
    assert result.exit_code == 0, result.output
    assert "000.png → ant, " in (tmp_path / "m/000.svg").read_text("utf-8")
    (tmp_path / "labels.json").write_text('["ant"]')
    result = dyvit("visualize", graph, tmp_path / "photos", "-o", tmp_path / "n", "--labels", tmp_path / "labels.json")
    assert result.exit_code == 1 and "has 1 names, and the model has 5 classes" in result.stderr
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("sort", ["onnx", "safetensors"])
def test_a_graph_and_its_checkpoint_are_drawn_alike(tmp_path, sort):
    artifact = {"onnx": tiny_graph, "safetensors": tiny_checkpoint}[sort](tmp_path)
    photo_folder(tmp_path / "photos", 1)
    report = dv.visualize([artifact], [tmp_path / "photos"], tmp_path / sort)
    assert [stage.kept for stage in report.drawn.stages] == [8, 4, 2]
    assert report.drawn.files == 1 and report.drawn.overview is None
    (tmp_path / "safetensors").mkdir(exist_ok=True)
    if sort == "safetensors":
        dv.visualize([tiny_graph(tmp_path)], [tmp_path / "photos"], tmp_path / "onnx")
        assert (tmp_path / "onnx/000.png").read_bytes() == (tmp_path / "safetensors/000.png").read_bytes()


@pytest.mark.parametrize("suffix", ["png", "svg", "gif", "webp"])
def test_two_runs_give_the_same_bytes(tmp_path, graph, suffix):
    photo_folder(tmp_path / "photos", 2)
    for run in ("a", "b"):
        dv.visualize([graph], [tmp_path / "photos"], tmp_path / run, dv.VisualizeConfig(format=suffix))
    assert names(tmp_path / "a") == names(tmp_path / "b") and len(names(tmp_path / "a")) == 3
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_animation_moves_and_goes_round(tmp_path, graph):
    photo_folder(tmp_path / "photos", 1)
    assert dyvit("visualize", graph, tmp_path / "photos", "--animate", "-o", tmp_path / "m").exit_code == 0
    with Image.open(tmp_path / "m/000.gif") as image:
        frames = [np.asarray(frame.convert("RGB"), np.int64) for frame in ImageSequence.Iterator(image)]
        assert image.info["loop"] == 0 and len(frames) > 10 and frames[-1].mean() > frames[0].mean()


def test_a_heat_map_counts_what_evaluation_counts(tmp_path):
    pytest.importorskip("sklearn", reason="the digit scenes")
    artifact = tiny_checkpoint(tmp_path, image_size=(64, 64), patch_size=16, classes=10)
    report = dv.visualize([artifact], [], tmp_path / "m", dv.VisualizeConfig(data="digits", images=40, heatmap=True))
    expected = dv.evaluate_artifact(artifact, "digits", dv.EvalConfig(images=40)).keep_maps
    assert names(tmp_path / "m") == ["heatmap.png"]
    for ours, theirs in zip(report.drawn.keep_maps, expected, strict=True):
        assert ours.kept == theirs.kept
        assert np.allclose(ours.probability, theirs.probability) and np.ptp(ours.probability) > 0


def test_a_difference_of_an_artifact_with_itself_is_none(tmp_path, graph):
    photo_folder(tmp_path / "photos", 2)
    result = dyvit("visualize", graph, tiny_checkpoint(tmp_path), tmp_path / "photos", "--diff", "-o", tmp_path / "m")
    assert result.exit_code == 0 and "same patches of every image" in result.output and "100.00%" in result.output
    assert names(tmp_path / "m") == []


def test_two_models_are_drawn_where_they_part_with_the_margin(tmp_path, graph):
    photo_folder(tmp_path / "photos", 3)
    (tmp_path / "other").mkdir()
    other = tiny_checkpoint(tmp_path / "other", seed=7)
    report = dv.visualize([graph, other], [tmp_path / "photos"], tmp_path / "m", dv.VisualizeConfig(diff=True))
    assert report.drawn.different == report.drawn.files == 3 and report.drawn.stages[0].same_images < 1
    assert report.drawn.stages[0].largest_margin > 0
    assert names(tmp_path / "m") == ["000.png", "001.png", "002.png", "contact-sheet.png"]


def test_images_of_one_name_do_not_overwrite_each_other(tmp_path, graph):
    for place in ("a", "b"):
        photo_folder(tmp_path / "photos" / place, 1)
    photo_folder(tmp_path / "photos/c", 1)
    (tmp_path / "photos/c/000.png").rename(tmp_path / "photos/c/contact-sheet.png")
    dv.visualize([graph], [tmp_path / "photos"], tmp_path / "m")
    assert names(tmp_path / "m") == ["a-000.png", "b-000.png", "c-contact-sheet.png", "contact-sheet.png"]
    dv.visualize([graph], [tmp_path / "photos" / name for name in "abc"], tmp_path / "n")
    assert names(tmp_path / "n") == ["000-2.png", "000.png", "contact-sheet-2.png", "contact-sheet.png"]


def odd_images(folder):
    """Images of many kinds: from cameras, scanners, and unusual ones."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (30, 50, 3), dtype=np.uint8))
    for mode in ("L", "LA", "RGBA", "P", "1"):
        colour.convert(mode).save(folder / f"mode-{mode}.png")
    Image.fromarray(np.asarray(colour.convert("L")).astype(np.uint16) * 257).save(folder / "mode-I16.png")
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    colour.save(folder / "turned.jpg", exif=turned)
    colour.save(folder / "moving.webp", save_all=True, append_images=[colour.rotate(90)])
    Image.new("RGB", (1, 1), "red").save(folder / "one.png")
    Image.new("RGB", (20_000, 300), "blue").save(folder / "wide.png")
    return folder


def test_odd_images_are_drawn_and_broken_ones_named_and_skipped(tmp_path, graph):
    count = len(names(odd_images(tmp_path / "odd")))
    (tmp_path / "odd/broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    (tmp_path / "odd/empty.png").write_bytes(b"")
    result = dyvit("visualize", graph, tmp_path / "odd", "-o", tmp_path / "m")
    assert result.exit_code == 0, result.output
    assert len(names(tmp_path / "m")) == count + 1
    assert "skipped, 2 in all" in result.output and "broken.jpg" in result.output and "empty.png" in result.output


def test_at_most_so_many_are_drawn_evenly_spread(tmp_path, graph):
    photo_folder(tmp_path / "photos", 9)
    dv.visualize([graph], [tmp_path / "photos"], tmp_path / "m", dv.VisualizeConfig(images=3))
    assert names(tmp_path / "m") == ["000.png", "004.png", "008.png", "contact-sheet.png"]


def test_scores_are_drawn_of_checkpoints_only(tmp_path, graph):
    photo_folder(tmp_path / "photos", 1)
    result = dyvit("visualize", graph, tmp_path / "photos", "--style", "scores", "-o", tmp_path / "m")
    assert result.exit_code == 2 and "only checkpoints do" in result.output and not (tmp_path / "m").exists()
    assert dyvit("visualize", tiny_checkpoint(tmp_path), tmp_path / "photos", "--style", "scores", "-o",
                 tmp_path / "m").exit_code == 0


@pytest.mark.parametrize("arguments, words", [
    (("{graph}", "{photos}", "--diff"), "two artifacts"),
    (("{graph}",), "Name the images"),
    (("{graph}", "{graph}", "{photos}"), "compared with --diff"),
    (("{graph}", "{photos}", "--data", "digits"), "not both"),
    (("{graph}", "{photos}", "-o", "{photos}/masks"), "choose another -o"),
    (("{graph}", "{photos}/000.png", "-o", "{photos}"), "choose another -o"),
    (("{graph}", "wds/{photos}", "-o", "{photos}"), "choose another -o"),
    (("{graph}", "--data", "{photos}", "-o", "{photos}"), "choose another -o"),
    (("{graph}", "{photos}", "--heatmap", "--animate"), "Only the images of one artifact"),
    (("{graph}", "{photos}", "--heatmap", "--diff"), "choose one of them"),
    (("{graph}", "{photos}", "--animate", "--format", "png"), "--animate writes gif or webp"),
    (("{graph}", "{photos}", "--style", "fode"), "Did you mean"),
    (("{graph}", "{photos}", "--format", "jpg"), "Unknown format"),
    (("{graph}", "{photos}", "--images", "0"), "at least 1"),
    (("{graph}", "{photos}/nothing"), "neither an image"),
    (("{graph}", "{empty}"), "holds no images"),
    (("{dense}", "{photos}"), "keeps every patch"),
    (("{blind}", "{photos}"), "--with-tokens"),
    (("{graph}", "{rest}", "{photos}", "--diff"), "differ in kept patches"),
])
def test_what_cannot_be_drawn_is_refused_in_one_sentence(tmp_path, graph, arguments, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo_folder(tmp_path / "photos", 1)
    for name in ("empty", "blind", "rest"):
        (tmp_path / name).mkdir()
    places = {"graph": graph, "photos": tmp_path / "photos", "empty": tmp_path / "empty"}
    if "{dense}" in arguments:
        places["dense"] = tiny_checkpoint(tmp_path, ratio=None)
    if "{blind}" in arguments:
        places["blind"] = tmp_path / "blind.onnx"
        dv.export_onnx(tiny_checkpoint(tmp_path), places["blind"])
    if "{rest}" in arguments:
        places["rest"] = tiny_graph(tmp_path / "rest", ratio=0.7)
    result = dyvit("visualize", *(word.format(**places) for word in arguments))
    lines = [line for line in result.output.splitlines() if line.startswith("dyvit: ")]
    assert result.exit_code in (1, 2) and len(lines) == 1 and words in " ".join(result.output.split()), result.output
    assert not (tmp_path / "masks").exists() or not names(tmp_path / "masks")


def test_a_folder_of_broken_images_is_an_error(tmp_path, graph):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.png").write_bytes(b"no")
    result = dyvit("visualize", graph, tmp_path / "photos", "-o", tmp_path / "m")
    assert result.exit_code == 1 and "None of the 1 images" in result.output


def test_figures_and_sheets_of_a_large_model_stay_small(tmp_path):
    photo_folder(tmp_path / "photos", 24, side=16)               # as many as a sheet has
    checkpoint = tiny_checkpoint(tmp_path, image_size=(512, 1024), patch_size=128)
    dv.visualize([checkpoint], [tmp_path / "photos"], tmp_path / "m")
    with Image.open(tmp_path / "m/000.png") as figure, Image.open(tmp_path / "m/contact-sheet.png") as sheet:
        assert max(figure.size) <= 2000 and sheet.width <= 2000 and sheet.width * sheet.height < 9_000_000


def test_a_dense_checkpoint_is_not_compared(tmp_path):
    photo_folder(tmp_path / "photos", 1)
    pair = [tiny_checkpoint(tmp_path), tiny_checkpoint(tmp_path, ratio=None)]
    with pytest.raises(ConfigError, match=r"tiny-dense\.safetensors keeps every patch"):
        dv.visualize(pair, [tmp_path / "photos"], tmp_path / "m", dv.VisualizeConfig(diff=True))


def test_ctrl_c_says_where_the_figures_are(tmp_path, graph, monkeypatch):
    photo_folder(tmp_path / "photos", 1)

    def stop(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr("dyvit_deploy.visualization.run.view_images", stop)
    result = dyvit("visualize", graph, tmp_path / "photos", "-o", tmp_path / "m")
    assert result.exit_code == 130 and "has the figures that were done" in result.output


def test_the_sheet_of_differences_has_the_largest_margins(tmp_path):
    album = drawings.Album(tmp_path, dv.VisualizeConfig(), "")
    kept = []
    for weight in [*range(20), 3, *range(20)]:
        album._added(lambda side: Strip("", ()), float(weight))
        kept.append(float(weight))
    assert sorted(weight for weight, _, _ in album._strips) == sorted(kept)[-24:]


def test_artifacts_of_one_name_get_different_names(tmp_path, graph):
    photo_folder(tmp_path / "photos", 1)
    (tmp_path / "other").mkdir()
    other = tiny_graph(tmp_path / "other")
    report = dv.visualize([graph, other], [tmp_path / "photos"], tmp_path / "m", dv.VisualizeConfig(diff=True))
    assert report.artifacts == (f"{tmp_path.name}/tiny.onnx", "other/tiny.onnx")


def test_files_of_an_earlier_run_give_a_note(tmp_path, graph):
    photo_folder(tmp_path / "photos", 2)
    assert "not of this run" not in dyvit("visualize", graph, tmp_path / "photos", "-o", tmp_path / "m").output
    again = dyvit("visualize", graph, tmp_path / "photos", "--images", 1, "-o", tmp_path / "m")
    assert "2 files that are not of this run" in again.output


def test_two_artifacts_that_see_other_patches_are_not_compared(tmp_path, graph):
    photo_folder(tmp_path / "photos", 1)
    (tmp_path / "other").mkdir()
    other = tmp_path / "other.onnx"
    dv.export_onnx(tiny_checkpoint(tmp_path / "other", patch_size=4), other, dv.ExportConfig(with_tokens=True))
    with pytest.raises(ConfigError, match="differ in patch grid"):
        dv.visualize([graph, other], [tmp_path / "photos"], tmp_path / "m", dv.VisualizeConfig(diff=True))
