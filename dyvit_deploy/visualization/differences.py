"""Where two artifacts keep different patches, and by how little."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .views import ImageView


class StageDifference(NamedTuple):
    """One image at one stage. `margin` is the largest distance between the score of a patch that only one keeps
    and the lowest score that is kept; None where nothing differs or no scores are known."""

    only_first: int
    only_second: int
    margin: float | None

    @property
    def same(self) -> bool:
        return not (self.only_first or self.only_second)

    def words(self) -> str:
        """How many patches differ, and by what score."""
        if self.same:
            return "the same"
        count = max(self.only_first, self.only_second)
        return f"{count} differ{'s' * (count == 1)}" + ("" if self.margin is None else f", {self.margin:.1g}")


def stage_differences(first: ImageView, second: ImageView) -> list[StageDifference]:
    """Per stage; margins in the scores of the first that has any."""
    scores = first.scores if first.scores is not None else second.scores
    judge = first if first.scores is not None else second
    found = []
    for stage, (ours, theirs) in enumerate(zip(first.kept, second.kept)):
        margin = None
        if scores is not None and (ours != theirs).any():
            cut = scores[stage][judge.kept[stage]].min()
            gaps = np.abs(scores[stage][ours != theirs] - cut)
            known = gaps[np.isfinite(gaps)]                                # a patch may have gone a stage earlier
            margin = float(known.max()) if len(known) else None
        found.append(StageDifference(int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), margin))
    return found
