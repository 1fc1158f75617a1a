"""Accuracy of any artifact on labelled images, and whether it keeps the patches on the object."""
from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from ..config import LoadConfig
from ..data.images import Batch, ImageSet, Track, no_track
from ..data.labels import check_numbers, class_numbers, numbering, require_labels
from ..data.open import open_images
from ..data.reading import nothing_readable
from ..machine.processes import claim_share, gather_over_ranks, rank, world_size
from ..runners.base import Outputs, Runner, run_in_batches
from ..runners.open import open_runner
from ..settings.tables import Table
from ..statistics.counts import counted
from ..statistics.estimates import Proportion
from .answers import Answers, image_key, pack_answers
from .config import EvalConfig
from .metrics import box_coverage, calibration_error, kept_counts, pooled, top_probability

# The calibration error is rounded to so many decimals: further ones depend on batch size and threads.
DIGITS = 6


@dataclass(frozen=True)
class StageCoverage:
    """The fraction of the object's box that the kept patches cover after one stage.

    `box_coverage` is the mean over images, `chance` the expected value for random patches (K / N).
    """

    stage: int
    kept: int
    box_coverage: float
    chance: float


@dataclass(frozen=True)
class KeepMap:
    """`probability` [rows][columns] is the fraction of images that keep each patch after one stage."""

    stage: int
    kept: int
    probability: tuple[tuple[float, ...], ...]

    def text(self) -> str:
        """The probabilities in percent, averaged to at most 7 x 7 cells."""
        percent = (100 * pooled(np.asarray(self.probability))).round().astype(int)
        return "\n".join(" ".join(f"{value:3d}" for value in row) for row in percent.tolist())


def keep_maps(shares: NDArray[np.float64], counts: Sequence[int]) -> tuple[KeepMap, ...]:
    """Keep maps from `shares` [S, rows, columns], the fraction of images that keep each patch, and K per stage."""
    return tuple(KeepMap(stage, counts[stage], tuple(map(tuple, grid.tolist()))) for stage, grid in enumerate(shares))


@dataclass(frozen=True)
class EvalReport:
    """The accuracy of an artifact. False if the artifact gave NaN or infinity for an image, see `failures`.

    `top1` and `top5` are fractions; `calibration_error` is the expected calibration error with 15 bins.
    `images_per_sec` is the throughput of all processes together, including data loading and preprocessing.
    `answers` has the images that were classified correctly; None if their names are not unique.
    """

    KIND: ClassVar[str] = "eval"

    artifact: str
    backend: str
    data: str
    images: int
    top1: float
    top5: float
    calibration_error: float
    images_per_sec: float
    processes: int
    coverage: tuple[StageCoverage, ...]
    keep_maps: tuple[KeepMap, ...]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    failures: tuple[str, ...] = ()
    answers: Answers | None = None

    def __bool__(self) -> bool:
        return not self.failures

    @property
    def top1_ci95(self) -> tuple[float, float]:
        """The 95 % confidence interval of `top1`."""
        return Proportion(self.images, counted(self.top1, self.images)).interval

    def table(self) -> Table:
        """Accuracy, box coverage per stage (if boxes are known), and the keep map of each stage."""
        title = f"{self.artifact} ({self.backend}) on {self.images} images of {self.data}"
        table = Table(title=Text(title), title_justify="left", show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        low, high = self.top1_ci95
        table.add_row("top-1", f"{self.top1:.2%}")
        table.add_row("top-1, 95 % interval", f"{low:.2%} to {high:.2%}")
        table.add_row("top-5", f"{self.top5:.2%}")
        table.add_row(f"expected calibration error, {self.images:,} images", f"{self.calibration_error:.2%}")
        for stage in self.coverage:
            table.add_row(f"box covered after stage {stage.stage} by {stage.kept} patches",
                          f"{stage.box_coverage:.1%} (by chance {stage.chance:.1%})")
        for kept in self.keep_maps:
            table.add_row(f"images that keep a patch after stage {kept.stage}, percent", kept.text())
        shared = f" ({self.processes} processes)" if self.processes > 1 else ""
        table.add_row("images/s, data loading included" + shared, f"{self.images_per_sec:.0f}")
        return table

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "top1_ci95": list(self.top1_ci95)}


def evaluate_artifact(path: str | Path, data: str, config: EvalConfig = EvalConfig(),
                      load: LoadConfig = LoadConfig(), track: Track[Any] = no_track) -> EvalReport:
    """Opens a file and evaluates it on the images called `data`; see `evaluate` and `open_images`."""
    threads = claim_share()
    with open_runner(path, load=load, device=config.device, threads=threads) as runner:
        images = open_images(data, runner.image_spec(load.image_size), config.split, config.images)
        return evaluate(runner, images, config.batch, track, config.class_map)


def evaluate(runner: Runner, images: ImageSet, batch: int = 32, track: Track[Any] = no_track,
             class_map: str | None = None) -> EvalReport:
    """Evaluates `runner` on labelled `images`: top-1, top-5 and calibration, box coverage if boxes are known, and the
    keep map of each stage if the artifact outputs the kept patches.

    Labels are matched by `class_map`, a file (see `read_class_map`), else by class name if the artifact records its
    class names, else by number. An image counts as right if the best of all classes of the model is its class. With
    several processes, all of them must call this function: each evaluates its share, and all return the same report.

    Raises:
        DataError: the images have no labels, have classes that the model does not know, or cannot be read.
        BackendError: another process failed.
    """
    [report] = evaluate_all([runner], images, batch, track, class_map)
    return report


def evaluate_all(runners: Sequence[Runner], images: ImageSet, batch: int = 32,
                 track: Track[Any] = no_track, class_map: str | None = None) -> list[EvalReport]:
    """`evaluate` for several models with the same input. Images are decoded once; the throughput is of all models."""
    tallies = [_Tally(runner, images, class_map) for runner in runners]
    share = images.part(rank(), world_size()) if world_size() > 1 else images
    started = time.perf_counter()
    for data in track(share.batches(batch), "evaluating", -(-len(share) // batch)):
        for runner, tally in zip(runners, tallies):
            tally.add(data, run_in_batches(runner, data.images, batch))
    skipped = tuple(sorted(line for lines in gather_over_ranks(share.skipped) for line in lines))
    for tally in tallies:
        tally.join()
    seconds = time.perf_counter() - started
    # Each share has a list of its own.
    images.skipped = list(skipped)
    if not len(tallies[0].results):
        raise nothing_readable(images.name, skipped)
    data_name = f"{images.name}:{images.split}" if images.split else images.name
    return [tally.report(data_name, seconds, skipped) for tally in tallies]


class _Tally:
    """Collects the results of this process's images; after `join`, of all processes.

    results: float64 [n, 3 or 3 + S], per image: top-1 correct, top-5 correct, confidence, then the box coverage after
        each stage if boxes are known.
    """

    def __init__(self, runner: Runner, images: ImageSet, class_map: str | None) -> None:
        self._runner, self._images, self._class_map = runner, images, class_map
        self._names = runner.facts.class_names if runner.facts else None
        self._numbers = class_numbers(images, self._names, class_map=class_map)
        self._model = runner.facts.model if runner.facts else None
        prune = runner.facts.prune if runner.facts else None
        self._counts = prune.counts(self._model.patches) if prune and self._model else ()
        self._kept = np.zeros((len(self._counts), self._model.patches if self._model else 0))
        # Names of images with logits that are not finite.
        self._broken: list[str] = []
        # Number of images whose kept patches are known.
        self._with_kept = 0
        self._rows: list[NDArray[np.float64]] = []
        self._keys: list[int] = []
        # The folder of the images, by which their names begin.
        self._folder = str(Path(images.name))
        self.answers: Answers | None = None
        self.results = np.empty((0, 3))

    def add(self, data: Batch, out: Outputs) -> None:
        assert data.labels is not None
        # Files that dyvit did not write do not record the number of classes.
        if self._class_map or not self._names:
            check_numbers(self._images, self._numbers, out.logits.shape[1], self._class_map)
        ranked = np.argsort(-out.logits, axis=1, kind="stable")[:, :5]
        broken = np.asarray(~np.isfinite(out.logits).all(axis=1))          # [B]
        self._broken += [name for name, bad in zip(data.names, broken) if bad]
        self._keys += [image_key(name.removeprefix(self._folder), int(label))
                       for name, label in zip(data.names, data.labels)]
        hits = (ranked == self._numbers[data.labels][:, None]) & ~broken[:, None]  # [B, 5]
        columns = [hits[:, 0], hits.any(1), top_probability(out.logits)]
        if self._model and self._counts and out.kept:
            self._with_kept += len(hits)
            self._kept += [kept_counts(stage, self._model.patches) for stage in out.kept]
            if data.boxes is not None:
                columns += [box_coverage(stage, data.boxes, self._model.grid, self._model.image_size)
                            for stage in out.kept]
        self._rows.append(np.stack(columns, axis=1).astype(np.float64))    # [B, 3 or 3 + S]

    def join(self) -> None:
        """Every process's images; sorted, so that nobody's share can be seen in the last digit of a mean."""
        rows, keys, broken, kept, known = zip(*gather_over_ranks(
            (self._rows, self._keys, self._broken, self._kept, self._with_kept)))
        if any(rows):
            results = np.concatenate([*itertools.chain(*rows)])
            self.answers = pack_answers(np.array([*itertools.chain(*keys)], np.uint64), results[:, 0] > 0)
            self.results = results[np.lexsort(results.T)]
        self._broken = sorted(itertools.chain(*broken))
        self._kept, self._with_kept = sum(kept), sum(known)

    def report(self, data: str, seconds: float, skipped: tuple[str, ...]) -> EvalReport:
        top1, top5, confidence = self.results[:, :3].T
        return EvalReport(
            self._runner.name, self._runner.label, data, len(top1), float(top1.mean()), float(top5.mean()),
            round(calibration_error(confidence, top1), DIGITS), len(top1) / seconds, world_size(),
            self._coverage(), self._keep_maps(), skipped, self._notes(), self._failures(), self.answers)

    def _coverage(self) -> tuple[StageCoverage, ...]:
        means = self.results[:, 3:].mean(axis=0).tolist()
        return tuple(StageCoverage(stage, kept, mean, kept / self._kept.shape[1])
                     for stage, (kept, mean) in enumerate(zip(self._counts, means)))

    def _keep_maps(self) -> tuple[KeepMap, ...]:
        if not self._with_kept or not self._model:
            return ()
        return keep_maps((self._kept / self._with_kept).reshape(-1, *self._model.grid), self._counts)

    def _failures(self) -> tuple[str, ...]:
        if not self._broken:
            return ()
        return (f"{self._runner.name} gives NaN or infinity for {len(self._broken)} of {len(self.results)} images, "
                f"which count as wrong; the first: {self._broken[0]}.",)

    def _notes(self) -> tuple[str, ...]:
        facts, notes, name = self._runner.facts, list[str](), self._runner.name
        if self._counts and not self._with_kept and not (facts and facts.prune and not facts.prune.keeps_patches):
            notes.append(f"{name} does not output which patches it keeps, so there are no keep-probability maps; "
                         "export it with --with-tokens.")
        if self._class_map:
            notes.append(f"Classes are mapped by {self._class_map}; an image counts as right if the best of all "
                         "classes of the model is its class.")
        elif not self._names:
            notes.append(numbering(name, self._images.name, require_labels(self._images)))
        return tuple(notes)
