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
# A class number from here on is an error in the data; ImageNet-21k has 21,841 classes.
MOST_CLASSES = 1_000_000


def numbers_as_names(largest: int, where: str) -> tuple[str, ...]:
    """"0", "1", ... up to the `largest` class number, the names of classes that have none.

    Raises:
        DataError: the number, which is read from `where`, is MOST_CLASSES or more.
    """
    if largest >= MOST_CLASSES:
        raise DataError(f"{where} has the class number {largest}, and more than {MOST_CLASSES:,} classes are not "
                        "believed; correct it.")
    return tuple(str(number) for number in range(largest + 1))


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
