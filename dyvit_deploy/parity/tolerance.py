"""What counts as the same, in float32 and at a lower precision, where no image is computed exactly alike."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError


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
    """Bounds over all images of a comparison with float32; fractions are 0..1.

    `top1` is the least share of images with the same best class, `error` the largest relative error of
    the logits (see `relative_error`), `overlap` the least mean share of kept tokens, at every stage.
    One image may always differ in its best class.
    """

    top1: float
    error: float
    overlap: float

    def __post_init__(self) -> None:
        for name in ("top1", "error", "overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"The tolerance for {name} must lie from 0 to 1, not {getattr(self, name)}.")


# A gross gate: what passes is worth evaluating. On a thousand classes, int8 that costs one point of top-1 changes
# the best class of about one image in twenty; calibration gone wrong changes that of every other one.
TOLERANCES = {
    "float16": PrecisionTolerance(top1=0.99, error=0.01, overlap=0.98),
    "bfloat16": PrecisionTolerance(top1=0.95, error=0.05, overlap=0.95),
    "int8": PrecisionTolerance(top1=0.90, error=0.15, overlap=0.90),
    "float8": PrecisionTolerance(top1=0.90, error=0.15, overlap=0.90),
}


def relative_error(expected: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """Root mean square difference of logits [B, classes] over the root mean square of the expected ones.

    Both are centred per image first: adding a constant to all logits of an image changes nothing.
    Infinite when a logit is not finite.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = (a.astype(np.float64) - a.mean(axis=1, keepdims=True, dtype=np.float64) for a in (expected, got))
        error = np.sqrt(((x - y) ** 2).mean()) / np.sqrt((x ** 2).mean())
    return float(error) if np.isfinite(error) else float("inf")


def disagreements(top1: float, error: float, overlap: Sequence[float], count: int,
                  tolerance: PrecisionTolerance) -> list[str]:
    """What lies outside `tolerance`, one sentence each: shares of `count` images, and the mean overlap per stage."""
    failures = []
    different = round((1 - top1) * count)
    if different > max(1, (1 - tolerance.top1) * count):
        failures.append(f"{different} of {count} images change their best class, {tolerance.top1:.0%} must keep it")
    if error > tolerance.error:
        failures.append(f"logits are off by {error:.1%} (root mean square), {tolerance.error:.0%} is allowed")
    for stage, share in enumerate(overlap):
        if share < tolerance.overlap:
            failures.append(f"stage {stage} keeps {share:.1%} of the tokens that float32 keeps, at least "
                            f"{tolerance.overlap:.0%} is needed")
    return failures
