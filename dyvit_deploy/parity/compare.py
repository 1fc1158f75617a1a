"""Compares a candidate artifact with a reference: logits, top-1, and kept tokens."""
from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
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
from ..errors import DataError
from ..runners.base import Outputs, Runner, join_outputs, run_in_batches, take
from ..runners.open import is_checkpoint, load_for, open_runner
from ..settings.tables import Table
from ..statistics.counts import exact
from .config import CheckConfig
from .kept_tokens import StageOverlap, near_cut, stage_overlaps
from .tolerance import TOLERANCES, PrecisionTolerance, Tolerance, mismatches, relative_error, uncertainty


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
    batch size only. If there are fewer images than a batch, they are repeated to fill it.

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
    outputs, pixels, names = [], [], []
    total = -(-len(images) // largest)
    for data in track(images.batches(largest), f"running {reference.name}", total):
        outputs.append(run_in_batches(reference, data.images, largest))
        pixels.append(data.images)
        names += data.names
    expected, all_pixels = join_outputs(outputs), np.concatenate(pixels)
    results = []
    for batch in sizes:
        # Repeats the images if they are fewer than the batch.
        fill = np.resize(np.arange(len(names)), max(len(names), batch))
        starts = range(0, len(fill), batch)
        outputs = [run_in_batches(candidate, all_pixels[fill[start:start + batch]], batch) for start in
                   track(starts, f"running {candidate.name} at batch {batch}", len(starts))]
        got = join_outputs(outputs)
        results.append(compare_outputs(take(expected, fill), got, batch, tolerance, [names[i] for i in fill]))
    if len(names) < largest:
        notes.append(f"{len(names)} images were repeated to fill batch {largest}.")
    if (expected.kept or got.kept) and not (expected.kept and got.kept):
        notes.append("Kept tokens were not compared, because one artifact does not output them; export it with "
                     "--with-tokens.")
    return ParityReport(reference.name, candidate.name, images.name, tolerance, tuple(results), tuple(notes),
                        tuple(images.skipped), distinct=len(names) if len(names) < largest else None)


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
    _check_comparable(expected, got)
    finite: NDArray[np.bool_]
    count = len(expected.logits)
    finite = np.isfinite(np.concatenate([got.logits, expected.logits], axis=1)).all(axis=1)  # [B]
    with np.errstate(invalid="ignore"):
        error = np.abs(got.logits.astype(np.float64) - expected.logits)    # [B, classes]
    error = np.where(finite[:, None], error, np.inf)
    per_image = error.max(axis=1)                                          # [B]
    scores = expected.scores or got.scores
    exact = tolerance if isinstance(tolerance, Tolerance) else Tolerance()
    overlaps = stage_overlaps(expected.kept, got.kept, scores, exact.tie) if expected.kept and got.kept else []
    agreement = float((expected.logits.argmax(axis=1) == got.logits.argmax(axis=1)).mean())
    relative = relative_error(expected.logits, got.logits)
    failures = [] if finite.all() else [f"{int((~finite).sum())} of {count} images give NaN or infinity"]
    tied_images = 0
    if isinstance(tolerance, PrecisionTolerance):
        failures += mismatches(agreement, relative, [o.mean for o in overlaps], count, tolerance)
    else:
        tied_images, differences = _differences(expected, got, per_image, tolerance, overlaps, names)
        failures += differences
    # Infinite errors give NaN here, which `_finite` turns into None.
    with np.errstate(invalid="ignore"):
        largest, mean, p99, cosine = (_finite(value) for value in (
            error.max(), error.mean(), np.quantile(error, 0.99), _cosine(expected.logits, got.logits).min()))
    return BatchParity(
        batch, count, largest, mean, p99, _finite(relative), cosine, int((~finite).sum()), agreement,
        tuple(float(o.mean) for o in overlaps), tuple(float(o.forgiven.mean()) for o in overlaps if scores),
        tied_images, tuple(failures))


def _differences(expected: Outputs, got: Outputs, per_image: NDArray[np.float64], tolerance: Tolerance,
                 overlaps: Sequence[StageOverlap], names: Sequence[str]) -> tuple[int, list[str]]:
    """How many images differ only because of a tie, and the failures of the others.

    `per_image` is the largest logit error of each image [B], infinite if a logit is not finite.
    """
    count = len(names)
    scores, finite = expected.scores or got.scores, np.isfinite(per_image)
    limit = tolerance.logits * np.where(finite, np.maximum(1.0, np.abs(expected.logits).max(axis=1)), 1.0)
    wrong: NDArray[np.bool_] = per_image > limit
    if overlaps:
        differ = np.stack([o.plain < 1 for o in overlaps]).any(axis=0)
        tied = differ & np.stack([o.forgiven > 1 - 1e-9 for o in overlaps]).all(axis=0)
        wrong |= differ
    else:
        kept = expected.kept if expected.scores else got.kept
        tied = near_cut(kept, scores, tolerance.tie) if scores else np.zeros(count, bool)
    tied_images = int((wrong & tied & finite).sum())
    wrong &= ~tied | ~finite
    failures = []
    if wrong.any():
        worst = int(np.where(wrong, per_image, -1).argmax())
        failures.append(f"{int(wrong.sum())} of {count} images differ, the worst ({names[worst]}) by a logit error of "
                        f"{per_image[worst]:.1e} where {limit[worst]:.1e} is allowed"
                        + (f" and kept-token overlap {min(o.plain[worst] for o in overlaps):.3f}" if overlaps else ""))
    by_chance = max(Fraction(1), exact(tolerance.tied_images) * count)
    if tied_images > min(by_chance, Fraction(count - 1)):
        failures.append(f"{tied_images} of {count} images differ because of tied scores, more than chance explains; "
                        "compare more images")
    return tied_images, failures


def _check_comparable(expected: Outputs, got: Outputs) -> None:
    if expected.logits.shape != got.logits.shape:
        raise DataError(f"The artifacts give logits of shape {list(expected.logits.shape)} and "
                        f"{list(got.logits.shape)}; compare artifacts of the same model.")
    reference_counts, candidate_counts = ([k.shape[1] for k in out.kept] for out in (expected, got))
    if reference_counts and candidate_counts and reference_counts != candidate_counts:
        raise DataError(f"The artifacts keep {reference_counts} and {candidate_counts} tokens; compare artifacts of "
                        "one schedule.")


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine similarity of the rows of `a` and `b`: [B]."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    cosine: NDArray[np.float64] = (x * y).sum(axis=1) / np.where(norms > 0, norms, 1)
    return cosine


def _finite(value: Any) -> float | None:
    """None for NaN and infinity, which JSON cannot hold."""
    return float(value) if np.isfinite(value) else None
