"""Reads an .npz file with images and the logits that other code computed from them, a few images at a time."""
from __future__ import annotations

import contextlib
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

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
DAMAGED = (OSError, ValueError, EOFError, KeyError, TypeError, RuntimeError, SyntaxError, zipfile.BadZipFile,
           zlib.error, tokenize.TokenError)
# Images that are read at once to look for NaN.
CHUNK = 8
# The most bytes of one image, and of one file name: what a header says decides how much memory is asked for.
MOST_BYTES = {IMAGES: 1 << 26, LOGITS: 1 << 24, FILES: 1 << 14}


@dataclass(frozen=True)
class ReferenceBatch:
    """Some images: float32 [B, 3, height, width] as they were given to the model, or [B, 1, height, width] to one of
    grey images, `logits` float32 [B, classes], the image `files` that they were made from, empty if unknown, and one
    name each, for messages."""

    images: NDArray[np.float32]
    logits: NDArray[np.float32]
    files: tuple[Path, ...]
    names: tuple[str, ...]

    @property
    def feed(self) -> NDArray[np.float32]:
        """The images as this package's models take them, [B, 3, height, width]."""
        # Weights of one channel are applied to the luma, which for three equal channels is that channel.
        return np.repeat(self.images, 3, axis=1) if self.images.shape[1] == 1 else self.images


@dataclass(frozen=True)
class Reference:
    """What a file holds: the number of images, their (height, width), the number of classes, whether the images have
    one channel, and the image `files` that they were made from, empty if unknown."""

    path: Path
    count: int
    size: tuple[int, int]
    classes: int
    grey: bool
    files: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return self.path.name

    def batches(self, size: int, limit: int) -> Iterator[ReferenceBatch]:
        """The first `limit` images, up to `size` at once.

        Raises:
            ArtifactError: the file has changed.
        """
        with _opened(self.path) as members:
            for start in range(0, min(limit, self.count), size):
                stop = min(start + size, limit, self.count)
                images, logits = (members[name].read(stop - start) for name in (IMAGES, LOGITS))
                files = self.files[start:stop]
                names = tuple(map(str, files)) or tuple(f"image {number}" for number in range(start, stop))
                yield ReferenceBatch(images, logits, files, names)

    def prepared(self, files: Iterable[Path], spec: ImageSpec) -> Iterator[NDArray[np.uint8]]:
        """Some of the `files`, resized and cropped, uint8 [height, width, 3] each. Raises DataError if one cannot be
        read."""
        for file in files:
            try:
                yield resize_and_crop(decode(file), spec)
            except UNREADABLE as error:
                raise DataError(f"{file}, which {self.path} names, cannot be read ({reason(error)}); names are "
                                "relative to the folder of that file.") from error


def read_reference(path: str | Path) -> Reference:
    """Reads an .npz file with the arrays `images` and `logits`, see `ReferenceBatch`, and optionally `files`: the names
    of the image files, relative to the folder of the .npz file. Objects are not unpickled. The file is read once, to
    find NaN and damage before the work.

    Raises:
        ArtifactError: the file is missing or damaged, or an array is missing or of another type or shape.
    """
    path = require_file(path)
    with _opened(path) as members:
        if missing := [name for name in (IMAGES, LOGITS) if name not in members]:
            raise ArtifactError(f"{path} has no array {missing[0]!r}; save it with np.savez(FILE, images=..., "
                                "logits=...).")
        images, logits = members[IMAGES], members[LOGITS]
        _check_forms(path, images, logits)
        _check_values(path, images, logits)
        count, channels, height, width = images.shape
        files = _files(path, members.get(FILES), count)
    return Reference(path, count, (height, width), logits.shape[1], channels == 1, files)


def _check_forms(path: Path, images: Member, logits: Member) -> None:
    for name, array, form in ((IMAGES, images, "[n, 3, height, width]"), (LOGITS, logits, "[n, classes]")):
        if array.dtype != np.float32 or len(array.shape) != form.count(",") + 1 or 0 in array.shape:
            raise ArtifactError(f"{name} of {path} is {array.dtype} {list(array.shape)}, not float32 {form}; save "
                                + ("the images as the model got them, after preprocessing." if name == IMAGES else
                                   "what the model returned."))
    if images.shape[1] not in (1, 3):
        raise ArtifactError(f"images of {path} has the shape {list(images.shape)}, not [n, 3, height, width]; save the "
                            "images as the model got them, channels first.")
    if images.shape[0] != logits.shape[0]:
        raise ArtifactError(f"{path} has {images.shape[0]} images and logits of {logits.shape[0]}; save the logits of "
                            "the same images.")


def _check_values(path: Path, images: Member, logits: Member) -> None:
    probabilities = True
    for start in range(0, images.shape[0], CHUNK):
        count = min(CHUNK, images.shape[0] - start)
        for name, values in ((IMAGES, images.read(count)), (LOGITS, scores := logits.read(count))):
            if not np.isfinite(values).all():
                raise ArtifactError(f"{name} of {path} has NaN or infinity; save what a working model computes.")
        probabilities &= bool((scores >= 0).all() and np.abs(scores.sum(axis=1) - 1).max() < 1e-3)
    if probabilities:
        raise ArtifactError(f"logits of {path} are probabilities; save what the model returns, before the softmax.")


class Member:
    """One array of the .npz file `path`, read from its first row on; damage is an ArtifactError."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, name: str) -> None:
        self._path = path
        self._file: IO[bytes] = archive.open(f"{name}.npy")
        version = np.lib.format.read_magic(self._file)
        read_header = (np.lib.format.read_array_header_1_0 if version == (1, 0)
                       else np.lib.format.read_array_header_2_0)
        shape, columns_first, self.dtype = read_header(self._file)
        self.shape: tuple[int, ...] = shape
        self._row = math.prod(shape[1:]) * self.dtype.itemsize
        self._left = shape[0] if shape else 1
        if self.dtype.hasobject:
            raise ValueError(f"{name} holds objects")
        if self._row > MOST_BYTES[name]:
            raise ValueError(f"{name} has {self._row} bytes per image")
        if columns_first and len(shape) > 1:
            raise ValueError(f"{name} is not in C order, which np.ascontiguousarray makes")

    def read(self, count: int) -> NDArray[Any]:
        """The next `count` rows."""
        with _damage(self._path):
            content = self._file.read(count * self._row)
            self._left -= count
            # Only at the end of a file does zipfile compare its checksum.
            self._file.read(0 if self._left else 1)
            # PyTorch wants memory that can be written to.
            return np.frombuffer(bytearray(content), self.dtype).reshape(count, *self.shape[1:])


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        raise ArtifactError(f"{path} is not an .npz file of plain arrays ({reason(error)}); save it with "
                            "np.savez(FILE, images=..., logits=...).") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[dict[str, Member]]:
    """The arrays of a file by name, to be read within the block."""
    with contextlib.ExitStack() as stack:
        with _damage(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            found = {name.removesuffix(".npy") for name in archive.namelist()}
            members = {name: Member(path, archive, name) for name in (IMAGES, LOGITS, FILES) if name in found}
        yield members


def _files(path: Path, names: Member | None, count: int) -> tuple[Path, ...]:
    if names is None:
        return ()
    if names.dtype.kind != "U" or names.shape != (count,):
        raise ArtifactError(f"files of {path} is {names.dtype} {list(names.shape)}, not {count} texts; save the name "
                            "of each image's file, in the order of the images.")
    found = tuple(path.parent / str(name) for name in names.read(count))
    for file in found:
        # Neither a pipe, which never ends, nor a place elsewhere on the machine.
        if not os.path.isfile(file) or Path(os.path.relpath(file, path.parent)).parts[0] == "..":
            raise ArtifactError(f"{path} names {str(file)[:200]}, which is no file in its folder; save the names "
                                "relative to that folder.")
    return found
