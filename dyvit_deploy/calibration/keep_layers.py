"""`--max-drop`: finds the fewest layers that must keep their precision for top-1 to fall by no more than allowed."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data.images import ImageSet
from ..data.labels import numbering, require_labels
from ..errors import DataError
from ..evaluation.evaluate import evaluate
from ..runners.base import Runner, run_in_batches
from ..settings.notes import assume

BATCH = 8
# The largest number of images that a drop is measured on.
IMAGES = 1000


@dataclass(frozen=True)
class Drop:
    """The top-1 accuracy lost to a lower precision, in points (0..100), measured on `images` images.

    If the images have no labels (`labelled` False), `points` is the share of images whose best class changes, which is
    an upper bound of the loss. `kept` are the layers that kept their precision.
    """

    points: float
    allowed: float
    images: int
    labelled: bool
    kept: tuple[str, ...]

    @property
    def loss(self) -> str:
        """The drop in words."""
        if self.labelled:
            return f"top-1 falls by {self.points:.2f} points"
        return f"the best class changes for {self.points:.2f} in 100 images"

    @property
    def failures(self) -> tuple[str, ...]:
        if self.points <= self.allowed:
            return ()
        return (f"{self.loss} where {self.allowed:g} are allowed, with {len(self.kept)} layers kept in higher "
                "precision",)


def fewest_kept(measure: Callable[[Sequence[str]], float], ranked: Sequence[str], allowed: float,
                ) -> tuple[tuple[str, ...], float]:
    """The shortest prefix of `ranked` for which `measure` is at most `allowed`, and the value of `measure` there.

    Tries prefixes of 0, 1, 2, 4, ... names, then bisects; `measure` should not increase with the length. If all names
    do not suffice, all are returned.
    """
    points = measure(())
    if points <= allowed:
        return (), points
    failing, passing, count = 0, None, 1
    while passing is None:
        count = min(count, len(ranked))
        points = measure(ranked[:count])
        if points <= allowed:
            passing = count
        elif count == len(ranked):
            return tuple(ranked), points
        else:
            failing, count = count, 2 * count
    while passing - failing > 1:
        middle = (failing + passing) // 2
        found = measure(ranked[:middle])
        if found <= allowed:
            passing, points = middle, found
        else:
            failing = middle
    return tuple(ranked[:passing]), points


class DropMeter:
    """Measures the drop of candidates relative to one float32 runner, on the same images.

    Raises:
        DataError: there are so few images that a single one exceeds the allowed drop.
    """

    def __init__(self, reference: Runner, images: ImageSet, allowed: float) -> None:
        if 100 / len(images) > allowed > 0:
            raise DataError(f"A drop of {allowed:g} points cannot be seen on {len(images)} images of {images.name}; "
                            f"give at least {int(np.ceil(100 / allowed))}.")
        self._images, self._expected, self._classes = images, 0.0, None
        try:
            self._expected = evaluate(reference, images, BATCH).top1
            if not (reference.facts and reference.facts.class_names):
                assume(numbering(reference.name, images.name, require_labels(images)))
        except DataError:
            # The images have no labels, or those of other classes.
            self._classes = _classes(reference, images)
        self.labelled = self._classes is None

    def points(self, candidate: Runner) -> float:
        """The drop of `candidate` in points; negative if it is better."""
        if self._classes is None:
            return 100 * (self._expected - evaluate(candidate, self._images, BATCH).top1)
        return 100 * float((_classes(candidate, self._images) != self._classes).mean())


def _classes(runner: Runner, images: ImageSet) -> NDArray[np.int64]:
    return np.concatenate([run_in_batches(runner, batch.images, BATCH).logits.argmax(axis=1)
                           for batch in images.batches(BATCH)])
