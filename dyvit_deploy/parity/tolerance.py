"""The tolerance at lower precisions, where the results of every image differ slightly."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..statistics.counts import counted, exact
from ..statistics.estimates import Proportion


@dataclass(frozen=True)
class Tolerance:
    """What counts as the same, for float32.

    `logits` is the largest absolute error, in units of the largest reference logit where that
    exceeds 1. `tie` is the score difference below which two tokens count as equal, in units of the
    largest score likewise. At most the fraction `tied_images` may owe their difference to a tie.
    """

    logits: float = 1e-4
    tie: float = 1e-5
    tied_images: float = 0.1

    def __post_init__(self) -> None:
        for name in ("logits", "tie", "tied_images"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"The tolerance for {name} must be finite and not negative, "
                                  f"not {getattr(self, name)}.")


@dataclass(frozen=True)
class PrecisionTolerance:
    """Bounds for a comparison with float32, over all images; fractions are 0..1.

    `top1` is the least fraction of images with the same best class; one image may always differ. `error` is the
    largest relative error of the logits, see `relative_error`. `overlap` is the least mean fraction of the
    reference's kept tokens that the candidate keeps, at every stage.
    """

    top1: float
    error: float
    overlap: float

    def __post_init__(self) -> None:
        for name in ("top1", "error", "overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"The tolerance for {name} must be from 0 to 1, not {getattr(self, name)}.")


# A coarse check: an artifact that passes is worth evaluating. With a thousand classes, an int8 artifact that loses one
# point of top-1 changes the best class of about one image in twenty; one with bad calibration, of every second image.
TOLERANCES = {
    "float16": PrecisionTolerance(top1=0.99, error=0.01, overlap=0.98),
    "bfloat16": PrecisionTolerance(top1=0.95, error=0.05, overlap=0.95),
    "int8": PrecisionTolerance(top1=0.90, error=0.15, overlap=0.90),
    "float8": PrecisionTolerance(top1=0.90, error=0.15, overlap=0.90),
}


def relative_error(expected: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """Root mean square of the difference of logits [B, classes], divided by that of the expected logits.

    The mean of each image is subtracted first, because adding a constant to all logits of an image changes no
    prediction. The error is infinite if a logit is not finite.
    """
    return error_of_squares(*squares(expected, got))


def squares(expected: NDArray[np.float32], got: NDArray[np.float32],
            ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per image, the sum of squares of the difference of logits [B, classes], and that of the expected logits: [B]."""
    with np.errstate(invalid="ignore"):
        x, y = (a.astype(np.float64) - a.mean(axis=1, keepdims=True, dtype=np.float64) for a in (expected, got))
        return ((x - y) ** 2).sum(axis=1), (x ** 2).sum(axis=1)


def error_of_squares(difference: NDArray[np.float64], signal: NDArray[np.float64]) -> float:
    """The `relative_error` of all images together."""
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(difference.sum() / signal.sum())
    return float(error) if np.isfinite(error) else float("inf")


def changed_classes(top1: float, count: int) -> Proportion:
    """The share of `count` images that change their best class if the fraction `top1` of them keeps it."""
    return Proportion(count, count - counted(top1, count))


def mismatches(top1: float, error: float, overlap: Sequence[float | Fraction], count: int,
               tolerance: PrecisionTolerance) -> list[str]:
    """One sentence for each bound of `tolerance` that the result over `count` images violates.

    Args:
        top1: fraction of the images with the same best class.
        error: see `relative_error`.
        overlap: mean fraction of kept tokens per stage; a fraction of counts is compared exactly.
    """
    failures = []
    different = changed_classes(top1, count).count
    if different > 1 and different > (1 - exact(tolerance.top1)) * count:
        failures.append(f"{different} of {count} images change their best class, {tolerance.top1:.0%} must keep it")
    if error > tolerance.error:
        failures.append(f"logits are off by {error:.1%} (root mean square), {tolerance.error:.0%} is allowed")
    for stage, share in enumerate(overlap):
        if exact(share) < exact(tolerance.overlap):
            failures.append(f"stage {stage} keeps {float(share):.1%} of the tokens that float32 keeps, at least "
                            f"{tolerance.overlap:.0%} is needed")
    return failures


def uncertainty(top1: float, count: int, tolerance: Tolerance | PrecisionTolerance) -> str:
    """What `count` images say about the share of all images that change their best class, with the number of images
    that would decide about the bound of a PrecisionTolerance if these do not."""
    changed = changed_classes(top1, count)
    low, high = changed.interval
    line = f"{changed.count} of {count:,} images change their best class, 95 % interval {low:.1%} to {high:.1%}"
    doubt = changed.doubt(1 - exact(tolerance.top1)) if isinstance(tolerance, PrecisionTolerance) else ""
    return f"{line}; {doubt}." if doubt else f"{line}."
