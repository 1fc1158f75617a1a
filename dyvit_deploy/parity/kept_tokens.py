"""Compares the kept tokens of two artifacts, and detects differences that are only ties."""
from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Scores = NDArray[np.float32]


class StageOverlap(NamedTuple):
    """The overlap of the kept tokens at one stage, per image.

    plain: float64 [B], the fraction of the reference's kept tokens that the candidate keeps.
    forgiven: float64 [B], the same, but tokens at a tie count as kept.
    kept: K, the number of tokens that the reference keeps per image.
    """

    plain: NDArray[np.float64]
    forgiven: NDArray[np.float64]
    kept: int

    @property
    def mean(self) -> Fraction:
        """The mean of `plain`, as a fraction of counts."""
        return Fraction(int(np.rint(self.plain * self.kept).sum()), len(self.plain) * self.kept)


def as_mask(kept: Indices, patches: int) -> NDArray[np.bool_]:
    """int64 [B, K] -> bool [B, N], True for kept patches."""
    mask = np.zeros((len(kept), patches), bool)
    np.put_along_axis(mask, kept, True, axis=1)
    return mask


def tie_width(scores: Scores, tie: float) -> NDArray[np.float64]:
    """The largest score difference that is a tie, [B]; `tie` is relative to the largest score if that exceeds 1."""
    size = np.where(np.isfinite(scores), np.abs(scores), 0).max(axis=1)
    width: NDArray[np.float64] = tie * np.maximum(1.0, size)
    return width


def stage_overlaps(expected: Sequence[Indices], got: Sequence[Indices], scores: Sequence[Scores],
                   tie: float) -> list[StageOverlap]:
    """Compares kept tokens stage by stage.

    The cut is the lowest score that the reference keeps. A missing token is forgiven if both it and a token that
    replaced it have a reference score within a tie of the cut. From the first forgiven difference on, the two
    artifacts process different tokens, so all later differences of that image are forgiven, too.

    Args:
        expected, got: per stage int64 [B, K_s], original patch numbers, of the reference and the candidate.
        scores: per stage float32 [B, N] of the reference, -inf for patches dropped before; if empty, nothing
            is forgiven.
        tie: see `tie_width`.
    """
    results: list[StageOverlap] = []
    # Images with a forgiven difference at an earlier stage.
    diverged = np.zeros(len(expected[0]) if expected else 0, bool)
    for stage, (reference, candidate) in enumerate(zip(expected, got)):
        patches = scores[stage].shape[1] if scores else int(max(reference.max(), candidate.max())) + 1
        wanted, found = as_mask(reference, patches), as_mask(candidate, patches)
        missing, extra = wanted & ~found, found & ~wanted
        plain = (wanted & found).sum(axis=1) / reference.shape[1]
        if scores:
            cut = np.where(wanted, scores[stage], np.inf).min(axis=1)      # [B]
            at_cut = np.abs(scores[stage] - cut[:, None]) <= tie_width(scores[stage], tie)[:, None]
            # A tie is a swap: one token at the cut is missing, and another token at the cut replaces it.
            swapped = np.minimum((missing & at_cut).sum(axis=1), (extra & at_cut).sum(axis=1))
            forgiven = np.where(diverged, 1.0, plain + swapped / reference.shape[1])
            diverged |= missing.any(axis=1) & (missing.sum(axis=1) == swapped)
        else:
            forgiven = plain
        results.append(StageOverlap(plain, forgiven, reference.shape[1]))
    return results


def near_cut(kept: Sequence[Indices], scores: Sequence[Scores], tie: float) -> NDArray[np.bool_]:
    """True for images in which the best dropped token ties with the worst kept one at some stage: bool [B]."""
    near = np.zeros(len(scores[0]), bool)
    for indices, score in zip(kept, scores):
        mask = as_mask(indices, score.shape[1])
        lowest = np.where(mask, score, np.inf).min(axis=1)
        highest = np.where(mask, -np.inf, score).max(axis=1)
        # A stage may drop nothing.
        dropped = np.isfinite(highest)
        gap = np.where(dropped, lowest - np.where(dropped, highest, 0), np.inf)
        near |= gap <= tie_width(score, tie)
    return near
