"""Compares a candidate artifact with a reference: logits, top-1, and kept tokens."""
from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from ..artifacts.facts import ArtifactFacts
from ..config import LoadConfig
from ..data.images import ImageSet, Track, no_track
from ..data.open import open_images
from ..runners.base import Outputs, Runner, run_in_batches
from ..runners.open import is_checkpoint, load_for, open_runner
from ..settings.tables import Table
from ..statistics.counts import exact
from .config import CheckConfig
from .images import Comparison, InBatches, Rows
from .tolerance import TOLERANCES, PrecisionTolerance, Tolerance, error_of_squares, mismatches, uncertainty


@dataclass(frozen=True)
class BatchParity:
    """The comparison at one batch size. Errors are absolute errors of logits, None if infinite; fractions are 0..1.

    `relative_error` is defined in `tolerance.relative_error`. `non_finite` counts the images for which either
    artifact gives NaN or infinity. `overlap` is the mean fraction of the reference's kept tokens that the candidate
    keeps, per stage; `overlap_forgiven` counts tokens at a tie as kept. Both are empty unless both artifacts output
    their kept tokens. `tied_images` counts the images that differ only because of a tie; the verdict ignores them.
    """

    batch: int
    images: int
    max_error: float | None
    mean_error: float | None
    p99_error: float | None
    relative_error: float | None
    min_cosine: float | None
    non_finite: int
    top1_agreement: float
    overlap: tuple[float, ...]
    overlap_forgiven: tuple[float, ...]
    tied_images: int
    failures: tuple[str, ...]


@dataclass(frozen=True)
class ParityReport:
    """The result of a comparison; true without failures. `notes` lists what could not be compared.

    `independent` marks a comparison with logits that other code computed, see `against`. `pixel_error` is then the
    largest difference between images as prepared by both, in units of the normalised input, None if not compared;
    `pixel_failures` are sentences about it, and `advice` names what usually causes the failures. `distinct` is the
    number of images without those that were repeated to fill a batch, None if none were.
    """

    KIND: ClassVar[str] = "check"

    reference: str
    candidate: str
    data: str
    tolerance: Tolerance | PrecisionTolerance
    batches: tuple[BatchParity, ...]
    notes: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    independent: bool = False
    pixel_error: float | None = None
    pixel_failures: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    distinct: int | None = None

    def __bool__(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        return (*self.pixel_failures, *(f"batch {b.batch}: {reason}" for b in self.batches for reason in b.failures))

    @property
    def certainty(self) -> str:
        """What the images say about all images, at the batch size with the lowest agreement; see `uncertainty`."""
        images = self.distinct or min(b.images for b in self.batches)
        return uncertainty(min(b.top1_agreement for b in self.batches), images, self.tolerance)

    def table(self) -> Table:
        """One row per batch size."""
        stages = max((len(b.overlap) for b in self.batches), default=0)
        title = f"{self.candidate} against {self.reference}, {self.batches[0].images} images of {self.data}"
        table = Table(title=Text(title), title_justify="left", caption=Text(self.certainty), caption_justify="left")
        for column in ("batch", "max error", "p99", "relative", "cosine", "NaN/Inf", "top-1 agree",
                       *(f"kept {s}" for s in range(stages)), "ties", "verdict"):
            table.add_column(column, justify="right", no_wrap=True)
        for b in self.batches:
            verdict = Text("differs", "red") if b.failures else Text(f"same on {self.distinct or b.images}", "green")
            errors = (f"{e:.1e}" if e is not None else "inf" for e in (b.max_error, b.p99_error, b.relative_error))
            cosine = f"{b.min_cosine:.7f}" if b.min_cosine is not None else "-"
            table.add_row(str(b.batch), *errors, cosine, str(b.non_finite), f"{b.top1_agreement:.2%}",
                          *(f"{share:.2%}" for share in b.overlap_forgiven or b.overlap), str(b.tied_images), verdict)
        return table

    def to_json(self) -> dict[str, Any]:
        return {"passed": bool(self), "failures": list(self.failures), "certainty": self.certainty,
                **dataclasses.asdict(self)}


def check_artifacts(reference: str | Path, candidate: str | Path, data: str | None = None,
                    config: CheckConfig = CheckConfig(), load: LoadConfig = LoadConfig(),
                    track: Track[Any] = no_track) -> ParityReport:
    """Opens two files and compares them; see `compare`.

    A checkpoint is opened with the keep counts, image size and weights of the other file's export.

    Raises:
        ArtifactError, DataError: a file or the images cannot be used.
    """
    with contextlib.ExitStack() as stack:
        first, second = open_pair(stack, reference, candidate, load, config.device)
        known = first if first.facts else second
        images = open_images(data, known.image_spec(load.image_size), limit=config.images)
        return compare(first, second, images, config, track)


def open_pair(stack: contextlib.ExitStack, reference: str | Path, candidate: str | Path, load: LoadConfig,
              device: str | None) -> tuple[Runner, Runner]:
    """Opens two artifacts to compare, and closes them with `stack`; a checkpoint is opened like the other's export."""
    # If one file is a checkpoint, `load` applies to the checkpoint only.
    mixed = is_checkpoint(reference) or is_checkpoint(candidate)

    def opened(path: str | Path, like: ArtifactFacts | None = None) -> Runner:
        return stack.enter_context(open_runner(path, load=load_for(path, load) if mixed else load, like=like,
                                               device=device))

    if is_checkpoint(reference) and not is_checkpoint(candidate):
        second = opened(candidate)
        return opened(reference, second.facts), second
    first = opened(reference)
    return first, opened(candidate, first.facts if is_checkpoint(candidate) else None)


def compare(reference: Runner, candidate: Runner, images: ImageSet, config: CheckConfig = CheckConfig(),
            track: Track[Any] = no_track) -> ParityReport:
    """Runs both artifacts on the same images and compares their outputs, at every batch size.

    The reference runs once, at the largest batch size. The candidate runs at each batch size, because
    an artifact that is correct at batch 1 can be wrong at others; one with a fixed batch runs at that
    batch size only. If there are fewer images than a batch, they are repeated to fill it. Images are streamed:
    memory does not grow with their number, but for some numbers per image.

    Raises:
        DataError: the artifacts have different numbers of classes, or keep different numbers of tokens.
        BackendError: the images do not fit an artifact, or it fails on them.
    """
    tolerance = config.tolerance or default_tolerance(reference, candidate, config.error)
    fixed = candidate.input.shape[0]
    sizes = (fixed,) if fixed else tuple(sorted(set(config.batches)))
    largest = max(sizes)
    notes = _notes(reference, candidate, images)
    for runner, other in ((reference, candidate), (candidate, reference)):
        runner.assumed_preprocess = other.preprocess
    comparisons = [in_batches(functools.partial(run_in_batches, candidate, batch=batch), batch, len(images), tolerance)
                   for batch in sizes]
    count, total = 0, -(-len(images) // largest)
    for data in track(images.batches(largest), f"running {reference.name} and {candidate.name}", total):
        expected = run_in_batches(reference, data.images, largest)
        count += len(data.names)
        for part in comparisons:
            part.add(data.images, expected, data.names)
    for part in comparisons:
        part.finish(repeat=True)
    results = tuple(judge(part.comparison, part.batch, tolerance) for part in comparisons)
    if count < largest:
        notes.append(f"{count} images were repeated to fill batch {largest}.")
    if comparisons[0].comparison.one_sided:
        notes.append("Kept tokens were not compared, because one artifact does not output them; export it with "
                     "--with-tokens.")
    return ParityReport(reference.name, candidate.name, images.name, tolerance, results, tuple(notes),
                        tuple(images.skipped), distinct=count if count < largest else None)


def in_batches(run: Callable[[NDArray[Any]], Outputs], batch: int, count: int,
               tolerance: Tolerance | PrecisionTolerance) -> InBatches:
    """What compares a candidate, called by `run`, at one batch size on `count` images or fewer."""
    return InBatches(run, batch, Comparison(max(count, batch), _tie(tolerance)))


def _tie(tolerance: Tolerance | PrecisionTolerance) -> float:
    return (tolerance if isinstance(tolerance, Tolerance) else Tolerance()).tie


def default_tolerance(reference: Runner, candidate: Runner, error: float | None = None,
                      ) -> Tolerance | PrecisionTolerance:
    """The tolerance of the candidate's precision, or of the reference's if only that is lower than float32."""
    lower = [TOLERANCES[r.precision] for r in (candidate, reference) if r.precision in TOLERANCES]
    if not lower:
        return Tolerance() if error is None else Tolerance(logits=error)
    return lower[0] if error is None else dataclasses.replace(lower[0], error=error)


def _notes(reference: Runner, candidate: Runner, images: ImageSet) -> list[str]:
    notes = []
    if images.name == "noise":
        notes.append("Compared on noise, which real images may contradict; pass --data FOLDER or --data digits.")
    for runner, other in ((reference, candidate), (candidate, reference)):
        if runner.facts is None:
            whose = other.name if other.facts else "ImageNet"
            notes.append(f"{runner.name} was not written by dyvit: its kept tokens and preprocessing are unknown; "
                         f"images are prepared as for {whose}.")
    origins = [runner.facts.parent if runner.facts else None for runner in (reference, candidate)]
    if origins[0] and origins[1] and origins[0]["sha256"] != origins[1]["sha256"]:
        notes.append(f"{candidate.name} comes from another file than {reference.name}: "
                     f"{origins[1]['file']} with sha256 {origins[1]['sha256'][:12]}.")
    return notes


def compare_outputs(expected: Outputs, got: Outputs, batch: int, tolerance: Tolerance | PrecisionTolerance,
                    names: Sequence[str]) -> BatchParity:
    """Compares the outputs `got` of the candidate with the `expected` ones of the reference, for the images `names`.

    Raises:
        DataError: the outputs are not of the same model and schedule.
    """
    comparison = Comparison(len(names), _tie(tolerance))
    comparison.add(expected, got, names)
    return judge(comparison, batch, tolerance)


def judge(comparison: Comparison, batch: int, tolerance: Tolerance | PrecisionTolerance) -> BatchParity:
    """The verdict on all images of a comparison that ran at `batch`."""
    rows, count = comparison.rows, len(comparison)
    agreement, finite = float(rows["same_top1"].mean()), rows["finite"]
    relative = error_of_squares(rows["difference"], rows["signal"])
    forgiven = tuple(rows["forgiven"].mean(axis=0).tolist())
    failures = [] if finite.all() else [f"{int((~finite).sum())} of {count} images give NaN or infinity"]
    tied_images = 0
    if isinstance(tolerance, PrecisionTolerance):
        failures += mismatches(agreement, relative, comparison.overlaps, count, tolerance)
    else:
        tied_images, differences = _differences(rows, tolerance, comparison.names)
        failures += differences
    largest, mean, p99, cosine = (_finite(value) for value in (
        rows["max_error"].max(), rows["mean_error"].mean(), comparison.p99_error, rows["cosine"].min()))
    return BatchParity(batch, count, largest, mean, p99, _finite(relative), cosine, int((~finite).sum()), agreement,
                       tuple(map(float, comparison.overlaps)), forgiven, tied_images, tuple(failures))


def _differences(rows: Rows, tolerance: Tolerance, names: Sequence[str]) -> tuple[int, list[str]]:
    """How many images differ only because of a tie, and the failures of the others; `rows` are those of `Comparison`.
    """
    count, per_image, finite = len(rows), rows["max_error"], rows["finite"]
    limit = tolerance.logits * np.where(finite, np.maximum(1.0, rows["magnitude"]), 1.0)
    wrong: NDArray[np.bool_] = per_image > limit
    tied: NDArray[np.bool_] = rows["near_cut"]
    compared = rows["plain"].shape[1] > 0
    if compared:
        differ = (rows["plain"] < 1).any(axis=1)
        known = rows["forgiven"].shape[1] > 0
        tied = differ & (rows["forgiven"] > 1 - 1e-9).all(axis=1) & known
        wrong |= differ
    tied_images = int((wrong & tied & finite).sum())
    wrong &= ~tied | ~finite
    failures = []
    if wrong.any():
        worst = int(np.where(wrong, per_image, -1).argmax())
        failures.append(f"{int(wrong.sum())} of {count} images differ, the worst ({names[worst]}) by a logit error of "
                        f"{per_image[worst]:.1e} where {limit[worst]:.1e} is allowed"
                        + (f" and kept-token overlap {rows['plain'][worst].min():.3f}" if compared else ""))
    by_chance = max(Fraction(1), exact(tolerance.tied_images) * count)
    if tied_images > min(by_chance, Fraction(count - 1)):
        failures.append(f"{tied_images} of {count} images differ because of tied scores, more than chance explains; "
                        "compare more images")
    return tied_images, failures


def _finite(value: Any) -> float | None:
    """None for NaN and infinity, which JSON cannot hold."""
    return float(value) if np.isfinite(value) else None
