"""Matches the class names of images to those of a model."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, did_you_mean
from .images import ImageSet
from .reading import NO_LABELS

# A message lists all classes up to this number.
LISTED = 20


def require_labels(images: ImageSet) -> tuple[str, ...]:
    """The class names of `images`.

    Raises:
        DataError: the images have no labels.
    """
    if images.class_names is None:
        raise DataError(NO_LABELS.format(images.name))
    return images.class_names


def class_numbers(images: ImageSet, known: Sequence[str] | None, owner: str = "model") -> NDArray[np.int64]:
    """For each class of `images`, the index of the class with the same name in `known`, the classes of `owner`.

    Without `known` classes the numbers stay unchanged. Training also needs this mapping: a validation split that
    lacks a class of the training split numbers its classes differently.

    Raises:
        DataError: the images have no labels, or a class that `known` lacks.
    """
    names = require_labels(images)
    if known is None:
        return np.arange(len(names))
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) if len(known) <= LISTED else f" It knows {len(known)}, like {known[0]!r}."
            raise DataError(f"The {owner} does not know the class {name!r} of {images.name}.{hint}")
    return np.asarray([list(known).index(name) for name in names])
