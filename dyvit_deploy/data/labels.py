"""Matches the class names of images to those of a model."""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, did_you_mean
from .images import ImageSet
from .label_files import read_class_map
from .reading import NO_LABELS

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


def class_numbers(images: ImageSet, known: Sequence[str] | None, owner: str = "model",
                  class_map: str | None = None) -> NDArray[np.int64]:
    """For each class of `images`, the index of the class with the same name in `known`, the classes of `owner`.

    Without `known` classes the numbers stay unchanged; `class_map`, a file, has its own, see `read_class_map`.
    Training also needs this mapping: a validation split that lacks a class of the training split numbers its classes
    differently.

    Raises:
        DataError: the images have no labels, or a class that `known` lacks or has twice.
    """
    names = require_labels(images)
    if class_map:
        return read_class_map(class_map, names)
    if known is None:
        return np.arange(len(names))
    advice = " To map folders to classes by number, pass --class-map FILE." if owner == "model" else ""
    number = {name: i for i, name in enumerate(known)}
    doubled = {name for name, count in Counter(known).items() if count > 1}
    for name in names:
        if name not in number:
            raise DataError(f"The {owner} does not know the class {name!r} of {images.name}."
                            f"{did_you_mean(name, known)}{advice}")
        if name in doubled:
            raise DataError(f"The {owner} has several classes with the name {name!r} of {images.name}.{advice}")
    return np.asarray([number[name] for name in names])


def check_numbers(images: ImageSet, numbers: NDArray[np.int64], classes: int, class_map: str | None) -> None:
    """Checks the `numbers` of `class_numbers` against the number of `classes` of a model that has no class names.

    Raises:
        DataError: the model has another number of classes than the images, or fewer than the map says.
    """
    names = require_labels(images)
    if class_map and numbers.max() >= classes:
        raise DataError(f"{class_map} gives {names[numbers.argmax()]!r} the class {numbers.max()}, and the classes of "
                        f"the model are 0 to {classes - 1}; correct it.")
    if not class_map and len(names) != classes:
        raise DataError(f"{images.name} has {len(names)} classes, the model {classes}; evaluate it on the data it was "
                        "trained for, or pass --class-map FILE with the number of the model's class for each folder.")


def numbering(owner: str, images: str, names: Sequence[str]) -> str:
    """A sentence about what is assumed where `owner`, a model, has no class names, and `images` have `names`."""
    listed = ", ".join(names if len(names) <= 4 else (*names[:3], f"... {names[-1]}"))
    return (f"{owner} has no class names; its classes 0 to {len(names) - 1} are taken to be those of {images} in "
            f"this order: {listed}.")
