"""Reads an .npz file with images and the logits that other code computed from them."""
from __future__ import annotations

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts.files import require_file
from ..config import ImageSpec
from ..data.images import UNREADABLE
from ..data.preprocess import resize_and_crop
from ..data.reading import decode
from ..errors import ArtifactError, DataError, reason

IMAGES, LOGITS, FILES = "images", "logits", "files"
# What a damaged or hostile file raises.
DAMAGED = (OSError, ValueError, EOFError, KeyError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Reference:
    """The content of a file: `images` float32 [B, 3, height, width] as they were given to the model, or [B, 1, height,
    width] to one of grey images, `logits` float32 [B, classes], and the image `files` that they were made from, empty
    if unknown."""

    path: Path
    images: NDArray[np.float32]
    logits: NDArray[np.float32]
    files: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def names(self) -> list[str]:
        """One name per image, for messages."""
        return [str(file) for file in self.files] or [f"image {number}" for number in range(len(self.images))]

    @property
    def grey(self) -> bool:
        """True if the images have one channel."""
        return len(self.images[0]) == 1

    @property
    def feed(self) -> NDArray[np.float32]:
        """The images as this package's models take them, [B, 3, height, width]."""
        # Weights of one channel are applied to the luma, which for three equal channels is that channel.
        return np.repeat(self.images, 3, axis=1) if self.grey else self.images

    def first(self, count: int) -> Reference:
        """The first `count` images only."""
        return dataclasses.replace(self, images=self.images[:count], logits=self.logits[:count],
                                   files=self.files[:count])

    def prepared(self, spec: ImageSpec) -> Iterator[NDArray[np.uint8]]:
        """The `files` resized and cropped, uint8 [height, width, 3] each. Raises DataError if one cannot be read."""
        for file in self.files:
            try:
                yield resize_and_crop(decode(file), spec)
            except UNREADABLE as error:
                raise DataError(f"{file}, which {self.path} names, cannot be read ({reason(error)}); names are "
                                "relative to the folder of that file.") from error


def read_reference(path: str | Path) -> Reference:
    """Reads an .npz file with the arrays `images` and `logits`, see `Reference`, and optionally `files`: the names of
    the image files, relative to the folder of the .npz file. Objects are not unpickled.

    Raises:
        ArtifactError: the file is missing or damaged, or an array is missing or of another type or shape.
    """
    path = require_file(path)
    arrays = _read_arrays(path)
    if missing := [name for name in (IMAGES, LOGITS) if name not in arrays]:
        raise ArtifactError(f"{path} has no array {missing[0]!r}; save it with np.savez(FILE, images=..., logits=...).")
    images, logits = arrays[IMAGES], arrays[LOGITS]
    for name, array, form in ((IMAGES, images, "[n, 3, height, width]"), (LOGITS, logits, "[n, classes]")):
        if array.dtype != np.float32 or array.ndim != form.count(",") + 1 or 0 in array.shape:
            raise ArtifactError(f"{name} of {path} is {array.dtype} {list(array.shape)}, not float32 {form}; save "
                                + ("the images as the model got them, after preprocessing." if name == IMAGES else
                                   "what the model returned."))
        if not np.isfinite(array).all():
            raise ArtifactError(f"{name} of {path} has NaN or infinity; save what a working model computes.")
    if images.shape[1] not in (1, 3):
        raise ArtifactError(f"images of {path} has the shape {list(images.shape)}, not [n, 3, height, width]; save the "
                            "images as the model got them, channels first.")
    if len(images) != len(logits):
        raise ArtifactError(f"{path} has {len(images)} images and logits of {len(logits)}; save the logits of the same "
                            "images.")
    if (logits >= 0).all() and np.abs(logits.sum(axis=1) - 1).max() < 1e-3:
        raise ArtifactError(f"logits of {path} are probabilities; save what the model returns, before the softmax.")
    return Reference(path, images, logits, _files(path, arrays.get(FILES), len(images)))


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if name in (IMAGES, LOGITS, FILES)}
    # An .npy file is an array, which is no context manager.
    except (*DAMAGED, AttributeError, TypeError) as error:
        raise ArtifactError(f"{path} is not an .npz file of plain arrays ({reason(error)}); save it with "
                            "np.savez(FILE, images=..., logits=...).") from error


def _files(path: Path, names: NDArray[Any] | None, count: int) -> tuple[Path, ...]:
    if names is None:
        return ()
    if names.dtype.kind != "U" or names.shape != (count,):
        raise ArtifactError(f"files of {path} is {names.dtype} {list(names.shape)}, not {count} texts; save the name "
                            "of each image's file, in the order of the images.")
    found = tuple(path.parent / str(name) for name in names)
    for file in found:
        # Neither a pipe, which never ends, nor a place elsewhere on the machine.
        if not os.path.isfile(file) or Path(os.path.relpath(file, path.parent)).parts[0] == "..":
            raise ArtifactError(f"{path} names {str(file)[:200]}, which is no file in its folder; save the names "
                                "relative to that folder.")
    return found
