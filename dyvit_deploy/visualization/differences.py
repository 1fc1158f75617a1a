"""Compares which patches two artifacts keep, and by what margin of the score they differ."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .views import ImageView


class StageDifference(NamedTuple):
    """One image at one stage. `margin` is the largest distance between the score of a patch that only one artifact
    keeps and the lowest kept score; None if nothing differs or no scores are known."""

    only_first: int
    only_second: int
    margin: float | None

    @property
    def same(self) -> bool:
        return not (self.only_first or self.only_second)

    def summary(self) -> str:
        """How many patches differ, and by what score."""
        if self.same:
            return "the same"
        count = max(self.only_first, self.only_second)
        return f"{count} differ{'s' * (count == 1)}" + ("" if self.margin is None else f", {self.margin:.1g}")


def stage_differences(first: ImageView, second: ImageView) -> list[StageDifference]:
    """The difference at each stage; margins are in the scores of `first`, or of `second` if `first` has none."""
    scores = first.scores if first.scores is not None else second.scores
    scored = first if first.scores is not None else second
    differences = []
    for stage, (left, right) in enumerate(zip(first.kept, second.kept)):
        margin = None
        if scores is not None and (left != right).any():
            cut = scores[stage][scored.kept[stage]].min()
            gaps = np.abs(scores[stage][left != right] - cut)
            # A patch that was dropped at an earlier stage has no score here.
            known = gaps[np.isfinite(gaps)]
            margin = float(known.max()) if len(known) else None
        differences.append(StageDifference(int((left & ~right).sum()), int((right & ~left).sum()), margin))
    return differences
