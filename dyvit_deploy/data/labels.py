"""Whether the labels of images are those that a model knows."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, did_you_mean
from .images import ImageSet
from .reading import NO_LABELS

LISTED = 20                                 # classes that fit in a message


def require_labels(images: ImageSet) -> tuple[str, ...]:
    """The class names of `images`.

    Raises:
        DataError: they have none.
    """
    if images.class_names is None:
        raise DataError(NO_LABELS.format(images.name))
    return images.class_names


def class_numbers(images: ImageSet, known: Sequence[str] | None, owner: str = "model") -> NDArray[np.int64]:
    """For each class of `images`, its number among the `known` ones of the `owner`, matched by name.

    Where nothing is `known`, the numbers stay as they are. Ask before training too, with the classes of the
    training split: a validation split that lacks one of them is numbered otherwise.

    Raises:
        DataError: the images have no labels, or a class that the owner lacks.
    """
    names = require_labels(images)
    if known is None:
        return np.arange(len(names))
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) if len(known) <= LISTED else f" It knows {len(known)}, like {known[0]!r}."
            raise DataError(f"The {owner} does not know the class {name!r} of {images.name}.{hint}")
    return np.asarray([list(known).index(name) for name in names])
