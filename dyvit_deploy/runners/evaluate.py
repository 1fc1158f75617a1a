"""Accuracy of any artifact on labelled images, and whether it keeps the patches that matter."""
from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from ..config import LoadConfig
from ..data.images import ImageSet, Track, no_track
from ..data.open import open_images
from ..errors import DataError, did_you_mean
from .base import Runner, run_in_batches
from .open import open_runner


@dataclass(frozen=True)
class StageCoverage:
    """How much of the object's box area the kept patches cover after one stage.

    `box_coverage` is the mean fraction covered, `chance` what random patches would cover (K / N).
    """

    stage: int
    kept: int
    box_coverage: float
    chance: float


@dataclass(frozen=True)
class EvalReport:
    """`top1` and `top5` are fractions; `images_per_sec` includes data loading and preprocessing."""

    artifact: str
    backend: str
    data: str
    images: int
    top1: float
    top5: float
    images_per_sec: float
    coverage: tuple[StageCoverage, ...]
    skipped: tuple[str, ...]

    def table(self) -> Table:
        """Accuracy, then one row per stage where the object's box is known."""
        title = f"{self.artifact} ({self.backend}) on {self.images} images of {self.data}"
        table = Table(title=Text(title), title_justify="left", show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        table.add_row("top-1", f"{self.top1:.2%}")
        table.add_row("top-5", f"{self.top5:.2%}")
        for stage in self.coverage:
            table.add_row(f"box covered after stage {stage.stage} by {stage.kept} patches",
                          f"{stage.box_coverage:.1%} (by chance {stage.chance:.1%})")
        table.add_row("images/s, data loading included", f"{self.images_per_sec:.0f}")
        return table

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def box_coverage(kept: NDArray[np.int64], boxes: NDArray[np.float32], grid: tuple[int, int],
                 image_size: tuple[int, int]) -> NDArray[np.float64]:
    """Fraction of each box's area that lies on kept patches.

    Args:
        kept: int64 [B, K], patch numbers in row order.
        boxes: float32 [B, 4], top, left, bottom, right in pixels.
        grid: rows and columns of the patch grid.
        image_size: height and width in pixels.

    Returns:
        float64 [B], 0..1.
    """
    def overlap(low: NDArray[Any], high: NDArray[Any], count: int, side: int) -> NDArray[Any]:
        edges = np.arange(count + 1) * (side / count)
        inside = np.minimum(high[:, None], edges[None, 1:]) - np.maximum(low[:, None], edges[None, :-1])
        pixels: NDArray[Any] = inside.clip(min=0)                          # [B, count]
        return pixels

    rows = overlap(boxes[:, 0], boxes[:, 2], grid[0], image_size[0])
    columns = overlap(boxes[:, 1], boxes[:, 3], grid[1], image_size[1])
    area = (rows[:, :, None] * columns[:, None, :]).reshape(len(boxes), -1)  # [B, N]
    covered: NDArray[np.float64] = np.take_along_axis(area, kept, axis=1).sum(1) / area.sum(1)
    return covered


@dataclass(frozen=True)
class EvalConfig:
    """On what to evaluate: a split, at most `images` of it (None: all), in batches."""

    split: str = "test"
    images: int | None = None
    batch: int = 32
    device: str | None = None


def evaluate_artifact(path: str | Path, data: str, config: EvalConfig = EvalConfig(),
                      load: LoadConfig = LoadConfig(), track: Track[Any] = no_track) -> EvalReport:
    """Opens a file and evaluates it on the images called `data`; see `evaluate` and `open_images`."""
    with open_runner(path, load=load, device=config.device) as runner:
        images = open_images(data, runner.image_spec(load.image_size), config.split, config.images)
        return evaluate(runner, images, config.batch, track)


def evaluate(runner: Runner, images: ImageSet, batch: int = 32, track: Track[Any] = no_track) -> EvalReport:
    """Top-1 and top-5 of `runner` on labelled `images`, and box coverage where boxes are known.

    Labels are matched by class name where the artifact knows its names, else by number.

    Raises:
        DataError: the images have no labels, or classes the model does not know.
    """
    if images.class_names is None:
        raise DataError(f"{images.name} has no labels; put the images of each class in a subfolder of its own.")
    known = runner.facts.class_names if runner.facts else None
    number = _class_numbers(images, known)
    right1 = right5 = count = 0
    covered: list[tuple[float, ...]] = []
    started = time.perf_counter()
    total = -(-len(images) // batch)
    for data in track(images.batches(batch), "evaluating", total):
        out = run_in_batches(runner, data.images, batch)
        assert data.labels is not None
        if known is None and out.logits.shape[1] != len(images.class_names):
            raise DataError(f"{images.name} has {len(images.class_names)} classes, the model {out.logits.shape[1]}; "
                            "evaluate it on the data it was trained for.")
        ranked = np.argsort(-out.logits, axis=1, kind="stable")[:, :5]
        hits = ranked == number[data.labels][:, None]                      # [B, 5]
        right1 += int(hits[:, 0].sum())
        right5 += int(hits.any(1).sum())
        count += len(hits)
        if data.boxes is not None and runner.facts:
            model = runner.facts.model
            covered += zip(*(box_coverage(k, data.boxes, model.grid, model.image_size) for k in out.kept))
    seconds = time.perf_counter() - started
    return EvalReport(runner.name, runner.label, images.name, count, right1 / count, right5 / count, count / seconds,
                      _coverage(runner, covered), tuple(images.skipped))


def _class_numbers(images: ImageSet, known: tuple[str, ...] | None) -> NDArray[np.int64]:
    """For each class of `images`, its number in the model; `known` are the model's class names."""
    names = images.class_names or ()
    if known is None:
        return np.arange(len(names))
    for name in names:
        if name not in known:
            raise DataError(f"The model does not know the class {name!r} of {images.name}.{did_you_mean(name, known)}")
    return np.asarray([known.index(name) for name in names])


def _coverage(runner: Runner, covered: list[tuple[float, ...]]) -> tuple[StageCoverage, ...]:
    if not covered or not runner.facts or not runner.facts.prune:
        return ()
    patches = runner.facts.model.patches
    counts = runner.facts.prune.counts(patches)
    means = np.asarray(covered).mean(axis=0)
    return tuple(StageCoverage(stage, kept, float(mean), kept / patches)
                 for stage, (kept, mean) in enumerate(zip(counts, means)))
