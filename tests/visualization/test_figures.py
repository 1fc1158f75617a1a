"""Figures are functions of their data: sizes, captions, bytes."""
import io

import numpy as np
import pytest
from PIL import Image

from dyvit_deploy.artifacts.charts import write_figure
from dyvit_deploy.visualization.config import STYLES
from dyvit_deploy.visualization.differences import stage_differences
from dyvit_deploy.visualization.figures import (
    DPI,
    PAINTS,
    animation_frames,
    difference_strip,
    heat_map_figure,
    image_strip,
    strips_figure,
)
from dyvit_deploy.visualization.views import ImageView

pytest.importorskip("matplotlib", reason="pip install 'dyvit-deploy[report]'")


def view(grid=(4, 4), patch=8, keep=(8, 4, 2), seed=0, name="photo.jpg"):
    rng, patches = np.random.default_rng(seed), grid[0] * grid[1]
    scores = np.tile(rng.normal(size=patches).astype(np.float32), (len(keep), 1))
    kept = np.argsort(np.argsort(-scores)) < np.array(keep)[:, None]
    for stage in range(1, len(keep)):
        scores[stage, ~kept[stage - 1]] = -np.inf
    pixels = rng.integers(0, 256, (grid[0] * patch, grid[1] * patch, 3), dtype=np.uint8)
    return ImageView(name, pixels, kept.reshape(-1, *grid), scores.reshape(-1, *grid), "7", 0.934, 7)


def texts(figure):
    return [text.get_text() for text in figure.texts]


def png(figure):
    file = io.BytesIO()
    figure.savefig(file, dpi=DPI, metadata={"Software": None})
    return file.getvalue()


@pytest.mark.parametrize("grid, patch, keep", [((4, 4), 8, (8, 4, 2)), ((2, 7), 16, (5,)), ((5, 3), 1, (15, 1)),
                                               ((14, 14), 16, (137, 96, 67, 9))])
@pytest.mark.parametrize("style", STYLES)
def test_any_grid_patch_size_and_number_of_stages_gives_a_panel_per_stage(grid, patch, keep, style):
    strip = image_strip(view(grid, patch, keep), style)
    assert len(strip.panels) == 1 + len(keep)
    assert strip.title == "photo.jpg \u2192 7, 93%"
    assert [panel.caption for panel in strip.panels[1:]] == [
        f"stage {s}: {k} of {grid[0] * grid[1]}" for s, k in enumerate(keep)]
    height, width = strip.panels[0].image.shape[:2]
    assert height * grid[1] == width * grid[0] and min(height, width) >= 192


def test_a_panel_is_in_the_file_pixel_for_pixel():
    strip = image_strip(view())
    page = np.asarray(Image.open(io.BytesIO(png(strips_figure([strip])))).convert("RGB"))
    side = strip.panels[1].image.shape[0]
    assert np.array_equal(page[24:24 + side, 10 + side + 10:10 + side + 10 + side], strip.panels[1].image)


def test_every_style_has_a_way_to_paint_and_leaves_a_stage_that_keeps_all_alone():
    assert tuple(PAINTS) == STYLES
    everything = view(keep=(16,))
    assert np.array_equal(PAINTS["fade"](everything.pixels, everything, 0), everything.pixels)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_same_data_give_the_same_bytes(tmp_path, suffix):
    for number in (1, 2):
        write_figure(strips_figure([image_strip(view())]), tmp_path / f"{number}.{suffix}", DPI)
        write_figure(heat_map_figure([np.eye(4)], (4,), "map"), tmp_path / f"map{number}.{suffix}", DPI)
    for name in ("", "map"):
        assert (tmp_path / f"{name}1.{suffix}").read_bytes() == (tmp_path / f"{name}2.{suffix}").read_bytes()


def test_a_name_is_no_formula_and_one_without_glyphs_still_draws(tmp_path, recwarn):
    odd = view(name="$x^$ \u6f22\u5b57 " + "long" * 100 + ".jpg")
    figure = strips_figure([image_strip(odd)])
    write_figure(figure, tmp_path / "odd.png", DPI)
    assert texts(figure)[0].startswith("$x^$") and len(texts(figure)[0]) < 200 and " ... " in texts(figure)[0]
    animation_frames(odd)
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_a_sheet_has_its_strips_side_by_side():
    strip = image_strip(view(), side=32)
    one, sheet = strips_figure([strip]), strips_figure([strip] * 3, "three", columns=2)
    assert sheet.get_figwidth() == 2 * one.get_figwidth() and texts(sheet)[0] == "three"
    assert sheet.get_figheight() > 2 * one.get_figheight() - 0.2


def test_panels_too_wide_for_a_line_take_several(monkeypatch):
    wide = strips_figure([image_strip(view(grid=(2, 64), patch=16, keep=(100, 50, 20)))])
    assert wide.get_figwidth() <= 20 and len(wide.texts) == 5
    assert len({round(text.get_position()[1], 6) for text in wide.texts}) > 2


@pytest.mark.parametrize("side", [512, 2048])
def test_large_images_are_averaged_down_and_small_ones_never_blurred(side):
    strip = image_strip(view(patch=side // 4), side=128)
    assert max(strip.panels[0].image.shape) <= 255
    small = view()
    assert set(np.unique(image_strip(small, side=128).panels[0].image)) <= set(np.unique(small.pixels))


def test_the_best_score_is_yellow_even_alone_and_dropped_patches_keep_their_content():
    alone = view(keep=(1,))
    painted = PAINTS["scores"](alone.pixels, alone, 0)
    kept = np.repeat(np.repeat(alone.kept[0], 8, 0), 8, 1)
    red, green, blue = painted[kept].mean(axis=0)
    assert red > 150 and green > 150 and blue < 130
    assert np.array_equal(painted[~kept], PAINTS["fade"](alone.pixels, alone, 0)[~kept])


def test_an_animation_starts_with_the_input_and_ends_with_the_last_stage():
    frames = animation_frames(view())
    stills = [frame for frame, shown in frames if shown > 1000]
    assert len(stills) == 4 and all(frame.shape == stills[0].shape for frame, _ in frames)
    whiteness = [float(frame.mean()) for frame in stills]
    assert whiteness == sorted(whiteness)


def test_the_summary_of_a_difference_has_its_margin():
    first, second = view(seed=1), view(seed=1)
    other = second.kept.copy()
    scores = first.scores[2]
    worst = np.unravel_index(np.where(first.kept[2], scores, np.inf).argmin(), scores.shape)
    best_dropped = np.unravel_index(np.where(first.kept[2] | ~first.kept[1], -np.inf, scores).argmax(), scores.shape)
    other[2][worst], other[2][best_dropped] = False, True
    found = stage_differences(first, second._replace(kept=other))
    assert [stage.same for stage in found] == [True, True, False]
    assert found[2][:2] == (1, 1) and found[2].margin == pytest.approx(scores[worst] - scores[best_dropped])
    strip = difference_strip(first, second._replace(kept=other), found)
    assert strip.title == "photo.jpg \u2192 7"
    assert [panel.caption.split(": ")[1] for panel in strip.panels[1:3]] == ["the same"] * 2
    assert strip.panels[3].caption.startswith("stage 2: 1 differs, ")


def test_without_scores_a_difference_has_no_margin():
    first, second = view(seed=1)._replace(scores=None), view(seed=2)._replace(scores=None)
    assert all(stage.margin is None for stage in stage_differences(first, second))
