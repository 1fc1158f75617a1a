"""How far two artifacts keep the same tokens, and whether a difference is only a tie."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Scores = NDArray[np.float32]


class StageOverlap(NamedTuple):
    """One stage, per image.

    plain: float64 [B], share of the reference's kept tokens that the candidate keeps.
    forgiven: float64 [B], the same with tokens at a tie counted as kept.
    """

    plain: NDArray[np.float64]
    forgiven: NDArray[np.float64]


def as_mask(kept: Indices, patches: int) -> NDArray[np.bool_]:
    """int64 [B, K] -> bool [B, N], True for kept patches."""
    mask = np.zeros((len(kept), patches), bool)
    np.put_along_axis(mask, kept, True, axis=1)
    return mask


def tie_width(scores: Scores, tie: float) -> NDArray[np.float64]:
    """[B]: the score difference that counts as a tie; `tie` is relative to scores above 1."""
    size = np.where(np.isfinite(scores), np.abs(scores), 0).max(axis=1)
    width: NDArray[np.float64] = tie * np.maximum(1.0, size)
    return width


def stage_overlaps(expected: Sequence[Indices], got: Sequence[Indices], scores: Sequence[Scores],
                   tie: float) -> list[StageOverlap]:
    """Compares kept tokens stage by stage.

    A lost token is forgiven when the reference scores it, and one that took its place, within the tie
    of its cut (the lowest score it keeps). From the first forgiven difference on, the two artifacts see different
    tokens, so all later differences of that image are forgiven too.

    Args:
        expected, got: per stage int64 [B, K_s], original patch numbers.
        scores: per stage float32 [B, N] of the reference, -inf where a patch was gone; may be empty,
            then nothing is forgiven.
    """
    results: list[StageOverlap] = []
    parted = np.zeros(len(expected[0]) if expected else 0, bool)           # images that differ by a tie so far
    for stage, (ours, theirs) in enumerate(zip(expected, got)):
        patches = scores[stage].shape[1] if scores else int(max(ours.max(), theirs.max())) + 1
        wanted, found = as_mask(ours, patches), as_mask(theirs, patches)
        missing, extra = wanted & ~found, found & ~wanted
        plain = (wanted & found).sum(axis=1) / ours.shape[1]
        if scores:
            cut = np.where(wanted, scores[stage], np.inf).min(axis=1)      # [B]
            at_cut = np.abs(scores[stage] - cut[:, None]) <= tie_width(scores[stage], tie)[:, None]
            # A tie is a swap: a token at the cut is gone, and another one at the cut took its place.
            swapped = np.minimum((missing & at_cut).sum(axis=1), (extra & at_cut).sum(axis=1))
            forgiven = np.where(parted, 1.0, plain + swapped / ours.shape[1])
            parted |= missing.any(axis=1) & (missing.sum(axis=1) == swapped)
        else:
            forgiven = plain
        results.append(StageOverlap(plain, forgiven))
    return results


def near_cut(kept: Sequence[Indices], scores: Sequence[Scores], tie: float) -> NDArray[np.bool_]:
    """[B]: True where at some stage the best dropped token ties with the worst kept one."""
    near = np.zeros(len(scores[0]), bool)
    for ours, score in zip(kept, scores):
        wanted = as_mask(ours, score.shape[1])
        lowest = np.where(wanted, score, np.inf).min(axis=1)
        highest = np.where(wanted, -np.inf, score).max(axis=1)
        dropped = np.isfinite(highest)                                     # a stage may drop nothing
        gap = np.where(dropped, lowest - np.where(dropped, highest, 0), np.inf)
        near |= gap <= tie_width(score, tie)
    return near
