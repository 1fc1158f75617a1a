"""Reading images one by one; damaged ones are named and left out."""
from __future__ import annotations

import abc
import collections
import contextlib
import copy
import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..config import ImageSpec
from ..errors import DataError, did_you_mean, reason
from ..machine.processes import cpu_share
from .images import UNREADABLE, Batch
from .preprocess import MOST_PIXELS, as_rgb, resize_and_crop

Read = Callable[[], tuple[Image.Image, int | None]]
NO_LABELS = "{} has no labels; put the images of each class in a subfolder of its own."
SPLITS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}


def split_names(split: str) -> tuple[str, ...]:
    """What a split may be called, best first; the validation split stands in for a missing test split.

    Raises:
        DataError: no such split.
    """
    if split not in SPLITS:
        raise DataError(f"Unknown split {split!r}.{did_you_mean(split, SPLITS)}")
    return SPLITS[split] + (SPLITS["val"] if split == "test" else ())


class Found(NamedTuple):
    """An image that could be read: uint8 [height, width, 3] of the model's size, and its label if it has one."""

    name: str
    pixels: NDArray[np.uint8]
    label: int | None


class Unread(NamedTuple):
    """An image that could not, and why."""

    name: str
    error: str


def read_images(items: Iterable[tuple[str, Read]], spec: ImageSpec, ahead: int,
                threads: int | None = None) -> Generator[Found | Unread, None, None]:
    """One result per item, in order, from names and what reads an image and its label.

    Several `threads` decode (default: this process's share of the cores), up to `ahead` items before the one that is
    asked for; no more than that many are in memory.
    """
    def read_one(item: tuple[str, Read]) -> Found | Unread:
        name, read = item
        try:
            image, label = read()
            return Found(name, resize_and_crop(image, spec), label)
        except UNREADABLE as error:
            return Unread(name, str(error))

    pool, waiting = ThreadPoolExecutor(threads or cpu_share()), collections.deque[Future[Found | Unread]]()
    try:
        for item in items:
            waiting.append(pool.submit(read_one, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:                                                               # Ctrl-C must not wait for the whole queue
        pool.shutdown(cancel_futures=True)


def read_batches(source: str, items: Iterable[tuple[str, Read]], size: int, spec: ImageSpec, skipped: list[str],
                 whole: bool) -> Iterator[Batch]:
    """Batches of up to `size`, in order; the next one is decoded while the caller works on this one.

    `skipped` gets a line for each image that cannot be read.

    Raises:
        DataError: not one image of a `whole` source can be read.
    """
    found, empty = list[Found](), True
    with contextlib.closing(read_images(items, spec, 2 * size)) as results:
        for result in results:
            if isinstance(result, Unread):
                skipped.append(f"{result.name}: {result.error}")
                continue
            found.append(result)
            if len(found) == size:
                yield _batch(found)
                found, empty = [], False
    if found:
        yield _batch(found)
    elif empty and whole:                                                  # a part of one image may be unlucky
        raise nothing_readable(source, skipped)


def _batch(found: Sequence[Found]) -> Batch:
    names, pixels, labels = zip(*found)
    return Batch(np.stack(pixels), None if None in labels else np.asarray(labels, np.int64), None, list(names))


def decode(file: str | Path | IO[bytes]) -> Image.Image:
    """An RGB image, or one of UNREADABLE."""
    try:
        with Image.open(file) as image:
            return as_rgb(image)
    except UnidentifiedImageError as error:                                # its text has an address in memory
        raise ValueError("it is no image of a known kind") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"it has more than the {MOST_PIXELS:,} pixels that are allowed") from error
    except UNREADABLE:
        raise
    except Exception as error:                                             # struct.error, IndexError, by decoder
        raise ValueError(f"it is damaged ({reason(error)})") from error


def spread(count: int, limit: int | None) -> NDArray[np.int64]:
    """At most `limit` of 0..count-1, evenly spaced: a prefix of sorted images would be one class only."""
    return np.linspace(0, count - 1, min(limit or count, count)).astype(np.int64)


class IndexedImages(abc.ABC):
    """Images that can be read in any order: an `ImageSet`, and `Samples` where they have labels.

    `items` are what `_read` and `_name` take.
    """

    mirror = True

    def __init__(self, name: str, class_names: tuple[str, ...] | None, spec: ImageSpec, items: Sequence[int],
                 split: str | None = None) -> None:
        self.name, self.class_names, self.split = name, class_names, split
        self.skipped: list[str] = []
        self._spec, self._items, self._whole = spec, items, True

    def __len__(self) -> int:
        return len(self._items)

    def part(self, rank: int, world: int) -> IndexedImages:
        """Every `world`-th image from number `rank` on."""
        part = copy.copy(self)
        part._items, part._whole, part.skipped = self._items[rank::world], world == 1, []
        return part

    def batches(self, size: int) -> Iterator[Batch]:
        """See `ImageSet`.

        Raises:
            DataError: not one image can be read.
        """
        self.skipped = []
        items = ((self._name(item), functools.partial(self._read, item)) for item in self._items)
        return read_batches(self.name, items, size, self._spec, self.skipped, self._whole)

    def sample(self, index: int, epoch: int) -> tuple[Image.Image, int]:
        """An image of its own size and its label; see `Samples`.

        Raises:
            DataError: the images have no labels.
            one of UNREADABLE: the image is damaged or gone.
        """
        image, label = self._read(self._items[index])
        if label is None:
            raise DataError(NO_LABELS.format(self.name))
        return image, label

    def name_of(self, index: int) -> str:
        return self._name(self._items[index])

    @abc.abstractmethod
    def _read(self, item: int) -> tuple[Image.Image, int | None]:
        """An RGB image and its label, or one of UNREADABLE."""

    @abc.abstractmethod
    def _name(self, item: int) -> str:
        """The image in a message."""


def nothing_readable(name: str, skipped: Sequence[str]) -> DataError:
    """The error where every image was skipped."""
    first = f"; the first: {skipped[0]}" if skipped else ""
    return DataError(f"None of the {len(skipped)} images in {name} can be read{first}.")
