"""Draws views image by image: one figure per image, a heat map of all, or the differences of two artifacts."""
from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..artifacts.charts import write_figure
from ..artifacts.files import atomic_write
from ..data.reading import spread
from ..evaluation.evaluate import keep_maps
from .config import ANIMATIONS, VisualizeConfig
from .differences import stage_differences
from .figures import (
    COLUMNS,
    DPI,
    KEY,
    LEAST,
    THUMB,
    Strip,
    animation_frames,
    difference_strip,
    heat_map_figure,
    image_strip,
    strips_figure,
)
from .pixels import Pixels
from .report import Drawn, StageDrawn
from .views import ImageView

SHEET, HEAT_MAP = "contact-sheet", "heatmap"
# At most this many images are on a contact sheet.
SHEET_IMAGES = 24


class Drawing(Protocol):
    """Draws one image after another. Constructed with the folder, the configuration, the names of the artifacts and
    the number of images."""

    def add(self, *views: ImageView) -> None:
        """Draws one image; `views` has its view by each artifact."""
        ...

    def finish(self, count: int) -> Drawn:
        """Draws the figures that need all `count` images."""
        ...


class Album:
    """Writes figures to a folder, and a contact sheet of the SHEET_IMAGES with the largest weights.

    `legend` explains the colours above each figure.
    """

    def __init__(self, folder: Path, config: VisualizeConfig, legend: str) -> None:
        self.folder, self.config, self.legend, self.figures = folder, config, legend, 0
        self._strips, self._taken = list[tuple[float, int, Strip]](), {SHEET}

    def add(self, name: str, strip: Callable[[int], Strip], weight: float) -> None:
        """Writes a still figure; `strip` draws it, given about the short side of a panel in pixels."""
        write_figure(strips_figure([strip(LEAST)], self.legend), self.path_for(name), DPI)
        self._added(strip, weight)

    def add_animation(self, name: str, frames: Sequence[tuple[Pixels, int]], strip: Callable[[int], Strip],
                      weight: float) -> None:
        """Writes an animation of frames (see `animation_frames`); `strip` draws it for the contact sheet."""
        write_animation(self.path_for(name), frames)
        self._added(strip, weight)

    def _added(self, strip: Callable[[int], Strip], weight: float) -> None:
        # Among equal weights, earlier figures are kept.
        key = (weight, -self.figures)
        if len(self._strips) < SHEET_IMAGES or key > self._strips[0][:2]:
            self._strips = sorted([*self._strips, (*key, strip(THUMB))], key=lambda s: s[:2])[-SHEET_IMAGES:]
        self.figures += 1

    def path_for(self, name: str) -> Path:
        """A unique file name for each image, made of the image's name."""
        stem = re.sub(r"[^\w.()+-]+", "-", str(Path(name).with_suffix("")))[-60:].strip("-.") or "image"
        unique, number = stem, 2
        while unique.lower() in self._taken:
            unique, number = f"{stem}-{number}", number + 1
        self._taken.add(unique.lower())
        return self.folder / f"{unique}.{self.config.format}"

    def sheet(self, title: str) -> str | None:
        """Draws the contact sheet if there is more than one figure."""
        if self.figures < 2:
            return None
        path = self.folder / f"{SHEET}.{self.config.still}"
        text = f"{title}: {len(self._strips)} of {self.figures}"
        strips = [strip for _, _, strip in sorted(self._strips, key=lambda s: -s[1])]
        write_figure(strips_figure(strips, "; ".join(filter(None, (text, self.legend))), COLUMNS), path, DPI)
        return str(path)


class ImageDrawing:
    """Draws one figure per image, and a contact sheet of images evenly spread over all."""

    def __init__(self, folder: Path, config: VisualizeConfig, artifacts: Sequence[str], total: int) -> None:
        self._album = Album(folder, config, KEY if config.style == "scores" else "")
        self._on_sheet = set(spread(total, SHEET_IMAGES).tolist())
        self._config, self._name, self._counts = config, artifacts[0], tuple[int, ...]()

    def add(self, *views: ImageView) -> None:
        [view], style = views, self._config.style
        self._counts, weight = view.counts, float(self._album.figures in self._on_sheet)

        def strip(side: int) -> Strip:
            return image_strip(view, style, side)
        if self._config.format in ANIMATIONS:
            self._album.add_animation(view.name, animation_frames(view, style), strip, weight)
        else:
            self._album.add(view.name, strip, weight)

    def finish(self, count: int) -> Drawn:
        sheet = self._album.sheet(f"{self._name}, images")
        return Drawn(self._album.figures, sheet, tuple(StageDrawn(*stage) for stage in enumerate(self._counts)))


class DifferenceDrawing:
    """Draws one figure per image of which two artifacts keep different patches, and a contact sheet of the images with
    the largest margins."""

    def __init__(self, folder: Path, config: VisualizeConfig, artifacts: Sequence[str], total: int) -> None:
        self._album = Album(folder, config, f"orange: only {artifacts[0]}; blue stripes: only {artifacts[1]}")
        self._counts, self._same, self._margins = tuple[int, ...](), np.zeros(0), np.zeros(0)

    def add(self, *views: ImageView) -> None:
        first, second = views
        stages = stage_differences(first, second)
        if not self._counts:
            self._counts, self._same = first.counts, np.zeros(len(stages))
            self._margins = np.full(len(stages), np.nan)
        self._same += [stage.same for stage in stages]
        margins = [np.nan if stage.margin is None else stage.margin for stage in stages]
        self._margins = np.fmax(self._margins, margins)
        if not all(stage.same for stage in stages):
            self._album.add(first.name, lambda side: difference_strip(first, second, stages, side),
                            max(stage.margin or 0.0 for stage in stages))

    def finish(self, count: int) -> Drawn:
        stages = zip(self._counts, (self._same / count).tolist(), self._margins.tolist())
        sheet = self._album.sheet("images that keep other patches")
        return Drawn(self._album.figures, sheet, tuple(
            StageDrawn(stage, kept, same, None if np.isnan(margin) else margin)
            for stage, (kept, same, margin) in enumerate(stages)), self._album.figures)


class HeatMapDrawing:
    """Draws one heat map of all images."""

    def __init__(self, folder: Path, config: VisualizeConfig, artifacts: Sequence[str], total: int) -> None:
        self._path, self._name = folder / f"{HEAT_MAP}.{config.still}", artifacts[0]
        self._sum: NDArray[np.int64] | None = None                         # [S, rows, columns]
        self._counts = tuple[int, ...]()

    def add(self, *views: ImageView) -> None:
        kept = views[0].kept.astype(np.int64)
        self._sum = kept if self._sum is None else self._sum + kept
        self._counts = views[0].counts

    def finish(self, count: int) -> Drawn:
        assert self._sum is not None
        shares = self._sum / count
        write_figure(heat_map_figure(list(shares), self._counts, f"{self._name}: what is kept of {count} images"),
                     self._path)
        return Drawn(0, str(self._path), tuple(StageDrawn(*stage) for stage in enumerate(self._counts)),
                     keep_maps=keep_maps(shares, self._counts))


def write_animation(path: Path, frames: Sequence[tuple[Pixels, int]]) -> None:
    """Writes frames, each with its duration in ms, as .gif or .webp that repeats endlessly."""
    images = [Image.fromarray(frame) for frame, _ in frames]
    with atomic_write(path) as temporary:
        images[0].save(temporary, save_all=True, append_images=images[1:], duration=[ms for _, ms in frames], loop=0)
