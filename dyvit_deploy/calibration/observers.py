"""Chooses the threshold at which a tensor is clipped, from a histogram of its values.

A tensor is quantized symmetrically: |x| up to the threshold is divided into INT8_LEVELS steps, and larger
values are clipped. The histogram of |x| is collected in one pass over streamed batches.
"""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
BINS = 2048
# Steps of int8 on either side of zero.
INT8_LEVELS = 127
# Percentage of values that `by_percentile` does not clip.
PERCENTILE = 99.99
# Number of thresholds that `by_mse` tries.
MSE_THRESHOLDS = 100


class Histogram:
    """Streaming histogram of |x| over [0, `limit`), in BINS equal bins, with the least and greatest x.

    When a value reaches `limit`, the limit is doubled and neighbouring bins are merged. Limits are powers
    of two, so the result does not depend on how the values are divided into batches.
    """

    def __init__(self) -> None:
        self.counts: Counts = np.zeros(BINS, np.int64)
        self.limit = 2.0 ** -30
        self.minimum, self.maximum = np.inf, -np.inf

    def update(self, values: NDArray[np.float32]) -> None:
        """Adds finite float32 values of any shape."""
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))
        while self.largest >= self.limit:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)])
            self.limit *= 2
        # The product is exact, because the factor is a power of two.
        bins = (np.abs(values.ravel()) * np.float32(BINS / self.limit)).astype(np.int32)
        self.counts += np.bincount(bins, minlength=BINS)

    @property
    def largest(self) -> float:
        """The largest |x|."""
        return max(-self.minimum, self.maximum)


def by_max(counts: Counts, limit: float, largest: float) -> float:
    """The largest value: nothing is clipped."""
    return largest


def by_percentile(counts: Counts, limit: float, largest: float, percentile: float = PERCENTILE) -> float:
    """The threshold that leaves `percentile` percent of the values unclipped."""
    share = np.cumsum(counts) / counts.sum()
    bin_ = int(np.searchsorted(share, percentile / 100 - 1e-12))
    return min(largest, (bin_ + 1) * limit / len(counts))


def by_mse(counts: Counts, limit: float, largest: float) -> float:
    """The threshold with the smallest mean squared error of rounding and clipping."""
    centres = (np.arange(len(counts)) + 0.5) * limit / len(counts)
    thresholds = largest * np.arange(1, MSE_THRESHOLDS + 1) / MSE_THRESHOLDS  # [T]
    step = thresholds[:, None] / INT8_LEVELS                               # [T, 1]
    rounded = np.minimum(np.round(centres / step), INT8_LEVELS) * step     # [T, bins]
    # Values are spread within a bin, so a step finer than a bin still has the rounding error of the step.
    error = np.maximum((rounded - centres) ** 2, np.where(centres <= thresholds[:, None], step ** 2 / 12, 0))
    return float(thresholds[(error * counts).sum(axis=1).argmin()])


def by_entropy(counts: Counts, limit: float, largest: float) -> float:
    """The threshold whose quantized distribution loses the least information (Kullback-Leibler divergence).

    Migacz, "8-bit inference with TensorRT", GTC 2017: for each number of bins from 128 on, the clipped
    tail is added to the last bin, the bins are merged into 128 levels and expanded again. The first
    bin gets the count of the second, because zeros, which activations have many of, are exact at any
    threshold.
    """
    levels = INT8_LEVELS + 1
    counts = np.concatenate([counts[1:2], counts[1:]])
    if not counts.any():
        return largest
    used = max(levels, int(np.flatnonzero(counts)[-1]) + 1)
    best, threshold = np.inf, largest
    for bins in range(levels, used + 1, 8):
        clipped = counts[:bins].astype(np.float64)
        kept = clipped > 0
        # The level of each bin.
        level = np.arange(bins) * levels // bins                           # [bins]
        mass = np.bincount(level, clipped, levels)
        members = np.bincount(level, kept, levels)
        spread = np.where(kept, (mass / np.maximum(members, 1))[level], 0)
        clipped[-1] += counts[bins:].sum()
        divergence = _kl(clipped, spread)
        if divergence < best:
            best, threshold = divergence, bins * limit / len(counts)
    return min(largest, threshold)


def _kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """KL divergence of two unnormalised distributions; empty bins of q get a tiny probability."""
    p, q = p / p.sum(), q / max(q.sum(), 1e-12)
    used = p > 0
    return float((p[used] * np.log(p[used] / np.maximum(q[used], 1e-9))).sum())


METHODS: dict[str, Callable[[Counts, float, float], float]] = {
    "max": by_max, "percentile": by_percentile, "mse": by_mse, "entropy": by_entropy,
}


def threshold(histogram: Histogram, method: str) -> float:
    """The threshold by `method`; 0 for a tensor that is always zero."""
    if histogram.largest == 0:
        return 0.0
    return METHODS[method](histogram.counts, histogram.limit, histogram.largest)
