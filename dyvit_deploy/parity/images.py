"""Compares outputs image by image, a few images at a time: a row of numbers and a name is all that is kept of each."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..runners.base import Outputs, join_outputs, take
from .kept_tokens import StageOverlap, near_cut, stage_overlaps
from .tolerance import squares

# Of each image. `finite`: all its logits are, in both. Errors are absolute errors of logits, infinite unless `finite`;
# `magnitude` is the largest absolute expected logit. `difference` and `signal` are those of `tolerance.squares`.
# `near_cut`, see `kept_tokens`, is False where kept tokens are compared. `plain` and `forgiven` are overlaps per stage,
# see `StageOverlap`; the former is empty unless both artifacts output kept tokens, the latter also without scores.
FIELDS = (("finite", bool), ("max_error", float), ("mean_error", float), ("magnitude", float), ("difference", float),
          ("signal", float), ("cosine", float), ("same_top1", bool), ("near_cut", bool))
# The quantile that is reported of all errors.
QUANTILE = 0.99

Rows = NDArray[np.void]


class Comparison:
    """Compares outputs with the expected ones; `count` is the number of images that will come, `tie` see `tie_width`.

    rows: [n], with the fields of FIELDS, `plain` and `forgiven`.
    one_sided: one artifact outputs kept tokens, and the other one does not.
    """

    def __init__(self, count: int, tie: float) -> None:
        self.names: list[str] = []
        self.one_sided = False
        self._count, self._tie = count, tie
        # K of each stage that is compared.
        self._kept: tuple[int, ...] = ()
        self._rows: list[Rows] = []
        self._errors: UpperTail | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def rows(self) -> Rows:
        return np.concatenate(self._rows)

    @property
    def overlaps(self) -> tuple[Fraction, ...]:
        """The mean of `plain` per stage, as fractions of counts."""
        plain = self.rows["plain"]
        return tuple(StageOverlap(plain[:, stage], plain[:, stage], kept).mean for stage, kept in enumerate(self._kept))

    @property
    def p99_error(self) -> float:
        """The 0.99 quantile of the errors of all logits of all images."""
        return self._errors.quantile() if self._errors else float("nan")

    def add(self, expected: Outputs, got: Outputs, names: Sequence[str]) -> None:
        """Compares the outputs `got` of the candidate for the images `names`.

        Raises:
            DataError: the outputs are not of the same model and schedule.
        """
        _check_comparable(expected, got)
        self.one_sided = bool(expected.kept) != bool(got.kept)
        finite = np.isfinite(np.concatenate([got.logits, expected.logits], axis=1)).all(axis=1)  # [B]
        with np.errstate(invalid="ignore"):
            error = np.abs(got.logits.astype(np.float64) - expected.logits)                      # [B, classes]
        error = np.where(finite[:, None], error, np.inf)
        scores = expected.scores or got.scores
        both = bool(expected.kept and got.kept)
        overlaps = stage_overlaps(expected.kept, got.kept, scores, self._tie) if both else []
        self._kept = tuple(o.kept for o in overlaps)
        shares = [("plain", [o.plain for o in overlaps]), ("forgiven", [o.forgiven for o in overlaps if scores])]
        rows = np.zeros(len(error), [*FIELDS, *((name, float, (len(stages),)) for name, stages in shares)])
        for name, stages in shares:
            for number, stage in enumerate(stages):
                rows[name][:, number] = stage
        rows["finite"], rows["max_error"], rows["mean_error"] = finite, error.max(axis=1), error.mean(axis=1)
        rows["magnitude"] = np.abs(expected.logits).max(axis=1)
        rows["difference"], rows["signal"] = squares(expected.logits, got.logits)
        rows["cosine"] = _cosine(expected.logits, got.logits)
        rows["same_top1"] = expected.logits.argmax(axis=1) == got.logits.argmax(axis=1)
        if scores and not both:
            rows["near_cut"] = near_cut(expected.kept if expected.scores else got.kept, scores, self._tie)
        self._rows.append(rows)
        self.names += names
        self._errors = self._errors or UpperTail(QUANTILE, self._count * error.shape[1])
        self._errors.add(error)


class UpperTail:
    """The largest of at most `count` numbers, as many as their quantile `q` needs; exact."""

    def __init__(self, q: float, count: int) -> None:
        self._q, self._size = q, int((1 - q) * count) + 2
        self._largest: NDArray[np.float64] = np.empty(0)
        self._least, self._seen = -np.inf, 0

    def add(self, values: NDArray[np.float64]) -> None:
        self._seen += values.size
        self._largest = np.concatenate([self._largest, values[values >= self._least]])
        # Sorted out now and then only.
        if len(self._largest) > 2 * self._size:
            self._largest = np.partition(self._largest, -self._size)[-self._size:]
            self._least = float(self._largest[0])

    def quantile(self) -> float:
        """As `numpy.quantile` of all numbers; a lower bound if there were more than `count`."""
        ordered, place = np.sort(self._largest), self._q * (self._seen - 1)
        # The place among the largest; those below it were dropped.
        place -= self._seen - len(ordered)
        low, share = max(0, int(np.floor(place))), max(0.0, place % 1)
        below, above = ordered[low], ordered[min(low + 1, len(ordered) - 1)]
        # An infinite error next to another one.
        with np.errstate(invalid="ignore"):
            return float(below + share * (above - below) if share else below)


class InBatches:
    """Runs a candidate in batches of one size on images that come in any number, and compares its outputs.

    run: gives the outputs for a batch of images.
    """

    def __init__(self, run: Callable[[NDArray[Any]], Outputs], batch: int, comparison: Comparison) -> None:
        self.batch, self.comparison = batch, comparison
        self._run = run
        self._images: NDArray[Any] | None = None
        self._expected, self._names = list[Outputs](), list[str]()

    def add(self, images: NDArray[Any], expected: Outputs, names: Sequence[str]) -> None:
        """Images [B, ...] with the outputs that are expected for them. Less than a batch waits for more."""
        self._images = images if self._images is None else np.concatenate([self._images, images])
        self._expected.append(expected)
        self._names += names
        if whole := len(self._images) // self.batch * self.batch:
            self._compare(whole)

    def finish(self, repeat: bool = False) -> None:
        """Compares what is left. If all images are less than a batch, they are repeated to fill it, or are one batch
        of their own."""
        left = len(self._names)
        if left and not len(self.comparison):
            if repeat:
                fill = np.resize(np.arange(left), self.batch)
                assert self._images is not None
                self._images, self._expected = self._images[fill], [take(join_outputs(self._expected), fill)]
                self._names = [self._names[number] for number in fill]
            else:
                self.batch = left
        if self._names:
            self._compare(len(self._names))

    def _compare(self, count: int) -> None:
        """Runs the first `count` images of those that wait."""
        assert self._images is not None
        expected = join_outputs(self._expected)
        for start in range(0, count, self.batch):
            rows = slice(start, min(start + self.batch, count))
            self.comparison.add(take(expected, rows), self._run(self._images[rows]), self._names[rows])
        # Copies, so that what is done with does not stay in memory.
        self._images, self._expected = self._images[count:].copy(), [take(expected, slice(count, None))]
        self._names = self._names[count:]


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
    with np.errstate(invalid="ignore"):
        cosine: NDArray[np.float64] = (x * y).sum(axis=1) / np.where(norms > 0, norms, 1)
    return cosine
