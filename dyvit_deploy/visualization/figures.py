"""Makes matplotlib Figures of the kept patches, after figures 5 and 6 of the paper.

The same data give the same figure, and `artifacts.charts.write_figure` writes the same bytes.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..artifacts.charts import any_script
from ..optional import require
from .differences import StageDifference
from .pixels import Pixels, coloured, differing, enlarged, faded, fitted, outlined
from .views import ImageView

DPI = 100
# All sizes are in pixels. The short side of a panel in a figure, and on a contact sheet.
LEAST, THUMB = 192, 128
# The largest long side of a panel.
LONGEST = 768
# The space between panels, above a strip, and below a panel.
GAP, TITLE, CAPTION = 10, 24, 20
# Strips side by side on a contact sheet, and its largest width.
COLUMNS, WIDEST = 2, 2000
# The percentages are written into a heat map of at most this many rows and columns.
CELLS = 14
# Steps of the transition between two stages of an animation.
BLENDS = 6
KEY = "colour: rank of the score among kept patches, yellow the highest, violet the lowest"


class Panel(NamedTuple):
    """An image and the line below it."""

    image: Pixels
    caption: str


class Strip(NamedTuple):
    """One row of panels of one size, and the line above them."""

    title: str
    panels: tuple[Panel, ...]


def _scored(pixels: Pixels, view: ImageView, stage: int) -> Pixels:
    """Colours each kept patch by the rank of its score among the kept ones, the best in yellow."""
    assert view.scores is not None
    kept, scores = view.kept[stage], view.scores[stage]
    order = np.argsort(np.argsort(scores[kept], kind="stable"), kind="stable")
    rank = np.zeros(kept.shape)
    # The best patch always has rank 1.
    rank[kept] = (order + 1) / len(order)
    colours = require("matplotlib", extra="report").colormaps["viridis"](rank)[..., :3]
    return coloured(pixels, kept, colours)


Paint = Callable[[Pixels, ImageView, int], Pixels]
PAINTS: dict[str, Paint] = {
    "fade": lambda pixels, view, stage: faded(pixels, view.kept[stage]),
    "outline": lambda pixels, view, stage: outlined(pixels, view.kept[stage]),
    "scores": _scored,
}


def image_strip(view: ImageView, style: str = "fade", side: int = LEAST) -> Strip:
    """The input and one panel per stage; `style` is one of STYLES, `side` is about the short side of a panel."""
    pixels, patches = enlarged(view.pixels, side), view.kept[0].size
    panels = [Panel(pixels, f"input: {patches} patches")]
    panels += [Panel(PAINTS[style](pixels, view, stage), f"stage {stage}: {count} of {patches}")
               for stage, count in enumerate(view.counts)]
    return _strip(f"{view.name} \u2192 {view.prediction}, {view.confidence:.0%}", panels, side)


def difference_strip(first: ImageView, second: ImageView, stages: Sequence[StageDifference],
                     side: int = LEAST) -> Strip:
    """The input and one panel per stage: patches that only the first artifact keeps are orange, those that only the
    second one keeps are blue with stripes."""
    pixels = enlarged(first.pixels, side)
    panels = [Panel(pixels, "input")]
    panels += [Panel(differing(pixels, first.kept[number], second.kept[number]), f"stage {number}: {stage.summary()}")
               for number, stage in enumerate(stages)]
    predictions = dict.fromkeys((first.prediction, second.prediction))
    return _strip(f"{first.name} \u2192 {' / '.join(predictions)}", panels, side)


def _strip(title: str, panels: Sequence[Panel], side: int) -> Strip:
    return Strip(title, tuple(Panel(fitted(panel.image, side, LONGEST), panel.caption) for panel in panels))


def strips_figure(strips: Sequence[Strip], title: str = "", columns: int = 1) -> Any:
    """A Figure of strips of one size, row by row, in pixels of 1 / DPI inch; panels wrap if they are too wide for one
    line."""
    count, (height, width) = len(strips[0].panels), strips[0].panels[0].image.shape[:2]
    inline = max(1, min(count, (WIDEST - GAP) // (width + GAP)))
    across, line = inline * (width + GAP) + GAP, height + CAPTION
    each = TITLE + -(-count // inline) * line
    columns = max(1, min(columns, len(strips), WIDEST // across))
    head, rows = TITLE if title else 0, -(-len(strips) // columns)
    canvas = np.full((head + rows * each + GAP, columns * across, 3), 255, np.uint8)
    texts = [_Label(GAP, TITLE // 2, title, columns * across, 12, "bold")] * bool(title)
    for number, strip in enumerate(strips):
        left, top = number % columns * across + GAP, head + number // columns * each
        texts.append(_Label(left, top + TITLE // 2, strip.title, across, 11, "bold"))
        for place, panel in enumerate(strip.panels):
            x, y = left + place % inline * (width + GAP), top + TITLE + place // inline * line
            canvas[y:y + height, x:x + width] = panel.image
            texts.append(_Label(x, y + height + CAPTION // 2, panel.caption, width, 9, "normal"))
    return _page(canvas, texts)


def animation_frames(view: ImageView, style: str = "fade") -> list[tuple[Pixels, int]]:
    """Frames uint8 [H, W, 3], each with its duration in ms: the input, then the remaining patches stage by stage."""
    strip = image_strip(view, style)
    stills = [_pixels_of(strips_figure([Strip(strip.title, (panel,))])) for panel in strip.panels]
    frames = [(stills[0], 1200)]
    for before, after in zip(stills, stills[1:]):
        for step in range(1, BLENDS):
            share = step / BLENDS
            frames.append((((1 - share) * before + share * after).round().astype(np.uint8), 60))
        frames.append((after, 1200))
    return frames


def heat_map_figure(maps: Sequence[NDArray[np.float64]], kept: Sequence[int], title: str) -> Any:
    """A Figure with one panel per stage, of the share of images in which each patch is kept.

    Args:
        maps: per stage float [rows, columns], 0..1.
        kept: number of patches left per stage.
    """
    rows, columns = maps[0].shape
    width = 3.2 * max(0.6, min(2.0, columns / rows))
    figure = require("matplotlib.figure", extra="report").Figure(
        figsize=(width * len(maps) + 1, 3.2 * max(1, rows / columns / 2) + 0.9), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(1, len(maps), squeeze=False).flat)
    for stage, (axes, values) in enumerate(zip(panels, maps)):
        drawn = axes.imshow(values, cmap="cividis", vmin=0, vmax=1)
        axes.set_title(f"stage {stage}: {kept[stage]} of {values.size} patches", fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
        for (row, column), value in np.ndenumerate(values) if rows <= CELLS and columns <= CELLS else ():
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7,
                      color="black" if value > 0.5 else "white")
    bar = figure.colorbar(drawn, ax=panels, ticks=[0, 0.25, 0.5, 0.75, 1], format="{x:.0%}", shrink=0.8)
    bar.set_label("images that keep the patch", fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, parse_math=False)
    return figure


class _Label(NamedTuple):
    """A line of text: its left end and its vertical middle in pixels from the top left, the available width in pixels,
    font size and weight."""

    x: int
    y: int
    text: str
    width: int
    size: int
    weight: str

    def short(self) -> str:
        """The text; its middle is cut out if it would be wider than `width`."""
        most = max(8, int(self.width / ((0.62 if self.weight == "bold" else 0.52) * self.size)))
        if len(self.text) <= most:
            return self.text
        return f"{self.text[:most // 2 - 2]} ... {self.text[-(most - most // 2 - 3):]}"


def _page(canvas: Pixels, labels: Sequence[_Label]) -> Any:
    """A Figure that shows `canvas` pixel for pixel, with labels over it."""
    height, width = canvas.shape[:2]
    figure = require("matplotlib.figure", extra="report").Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    # Without axes, which are slow.
    image = require("matplotlib.image", extra="report").BboxImage(figure.bbox, interpolation="none")
    image.set_data(canvas)
    figure.add_artist(image)
    # parse_math is off, because a $ in a file name would start a formula.
    for label in labels:
        # matplotlib takes no text with bytes of a file name that is not UTF-8.
        text = label.short().encode("utf-8", "replace").decode("utf-8")
        figure.text(label.x / width, 1 - label.y / height, text, fontsize=label.size * 72 / DPI,
                    weight=label.weight, va="center", parse_math=False)
    return figure


def _pixels_of(figure: Any) -> Pixels:
    """The rendered figure: uint8 [H, W, 3]."""
    canvas = require("matplotlib.backends.backend_agg", extra="report").FigureCanvasAgg(figure)
    with any_script():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
