"""`--max-drop`: finds the fewest layers that must keep their precision for top-1 to fall by no more than allowed."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ..data.images import ImageSet
from ..data.labels import numbering, require_labels
from ..errors import DataError
from ..evaluation.answers import estimated_loss
from ..evaluation.evaluate import EvalReport, evaluate
from ..runners.base import Runner, run_in_batches
from ..settings.notes import assume
from ..statistics.counts import as_fraction, exact
from ..statistics.estimates import Estimate, Proportion

BATCH = 8
# The largest number of images that a drop is measured on.
IMAGES = 1000


@dataclass(frozen=True)
class Drop:
    """The top-1 accuracy lost to a lower precision, in points (0..100), measured on `images` images.

    If the images have no labels (`labelled` False), `points` is the share of images whose best class changes, which is
    an upper bound of the loss. `kept` are the layers that kept their precision. `ci95` is the 95 % interval of the
    points; `doubt` says how many images would decide whether more than `allowed` points are lost, and is empty if these
    do.
    """

    points: float
    allowed: float
    images: int
    labelled: bool
    kept: tuple[str, ...]
    ci95: tuple[float, float] | None = None
    doubt: str = ""

    @property
    def loss(self) -> str:
        """The drop in words."""
        if self.labelled:
            return f"top-1 falls by {self.points:.2f} points"
        return f"the best class changes for {self.points:.2f} in 100 images"

    @property
    def basis(self) -> str:
        """The number of images, and the interval."""
        interval = f", 95 % interval {self.ci95[0]:.2f} to {self.ci95[1]:.2f}" if self.ci95 else ""
        return f"{self.images} images{interval}"

    @property
    def failures(self) -> tuple[str, ...]:
        """The drop, if the images lost more than allowed; `doubt` says whether that holds for all images."""
        if 100 * as_fraction(self.points / 100, self.images) <= exact(self.allowed):
            return ()
        return (f"{self.loss} where {self.allowed:g} are allowed, with {len(self.kept)} layers kept in higher "
                "precision",)


def fewest_kept(measure: Callable[[Sequence[str]], Drop], ranked: Sequence[str]) -> Drop:
    """The drop of the shortest prefix of `ranked` for which `measure` gives one that is allowed.

    Tries prefixes of 0, 1, 2, 4, ... names, then bisects; the drop should not increase with the length. If all names
    do not suffice, the drop is that of all.
    """
    drop = measure(())
    failing, passing, count = 0, 0, 1
    while drop.failures:
        count = min(count, len(ranked))
        if count == failing:
            return drop
        drop = measure(ranked[:count])
        failing, passing, count = (count, passing, 2 * count) if drop.failures else (failing, count, count)
    while passing - failing > 1:
        middle = (failing + passing) // 2
        found = measure(ranked[:middle])
        if found.failures:
            failing = middle
        else:
            passing, drop = middle, found
    return drop


class DropMeter:
    """Measures the drop of candidates relative to one float32 runner, on the same images.

    Raises:
        DataError: there are so few images that a single one exceeds the allowed drop.
    """

    def __init__(self, reference: Runner, images: ImageSet, allowed: float) -> None:
        if Fraction(100, len(images)) > exact(allowed) > 0:
            raise DataError(f"A drop of {allowed:g} points cannot be seen on {len(images)} images of {images.name}; "
                            f"give at least {math.ceil(100 / exact(allowed))}.")
        self._images, self._allowed = images, allowed
        self._expected: EvalReport | None = None
        try:
            self._expected = evaluate(reference, images, BATCH)
            if not (reference.facts and reference.facts.class_names):
                assume(numbering(reference.name, images.name, require_labels(images)))
        except DataError:
            # The images have no labels, or those of other classes.
            self._classes = _classes(reference, images)

    def drop(self, candidate: Runner, kept: Sequence[str] = ()) -> Drop:
        """The drop of `candidate`, in which the layers `kept` kept their precision."""
        lost: Estimate
        if (expected := self._expected) is None:
            changed = _classes(candidate, self._images) != self._classes
            lost = Proportion(len(changed), int(changed.sum()))
        else:
            found = evaluate(candidate, self._images, BATCH)
            lost = estimated_loss(found.images, (expected.top1, expected.answers), (found.top1, found.answers))
        low, high = (100 * end for end in lost.interval)
        return Drop(float(100 * lost.share), self._allowed, lost.images, expected is not None, tuple(kept),
                    (low, high), lost.doubt(exact(self._allowed) / 100))


def _classes(runner: Runner, images: ImageSet) -> NDArray[np.int64]:
    return np.concatenate([run_in_batches(runner, batch.images, BATCH).logits.argmax(axis=1)
                           for batch in images.batches(BATCH)])
