"""Decodes images in threads and groups them into batches; damaged images are skipped and recorded."""
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
from .preprocess import MOST_PIXELS, as_rgb, orientation, resize_and_crop
from .walk import FORMATS

ImageReader = Callable[[], tuple[Image.Image, int | None]]
NO_LABELS = "{} has no labels; put the images of each class in a subfolder of its own."
SPLITS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}


def split_names(split: str) -> tuple[str, ...]:
    """Accepted names of a split, best first; a missing test split falls back to the validation split.

    Raises:
        DataError: `split` is not one of SPLITS.
    """
    if split not in SPLITS:
        raise DataError(f"Unknown split {split!r}.{did_you_mean(split, SPLITS)}")
    return SPLITS[split] + (SPLITS["val"] if split == "test" else ())


class DecodedImage(NamedTuple):
    """An image at the model's input size, uint8 [height, width, 3], and its label if it has one. `turned`: its file has
    an EXIF orientation other than upright, applied or not."""

    name: str
    pixels: NDArray[np.uint8]
    label: int | None
    turned: bool = False


class UnreadableImage(NamedTuple):
    """An image that cannot be read, and the reason."""

    name: str
    error: str


ReadResult = DecodedImage | UnreadableImage


def read_images(items: Iterable[tuple[str, ImageReader]], spec: ImageSpec, ahead: int,
                threads: int | None = None) -> Generator[ReadResult, None, None]:
    """Reads `items`, names with their readers, and yields one result per item, in order.

    `threads` (default: this process's share of the cores) decode up to `ahead` items in advance; no more than that
    many are in memory.
    """
    def read_one(item: tuple[str, ImageReader]) -> ReadResult:
        name, read = item
        try:
            image, label = read()
            return DecodedImage(name, resize_and_crop(image, spec), label, orientation(image) != 1)
        except UNREADABLE as error:
            return UnreadableImage(name, str(error))

    pool, waiting = ThreadPoolExecutor(threads or cpu_share()), collections.deque[Future[ReadResult]]()
    try:
        for item in items:
            waiting.append(pool.submit(read_one, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Ctrl-C must not wait for the whole queue.
        pool.shutdown(cancel_futures=True)


def read_batches(source: str, items: Iterable[tuple[str, ImageReader]], size: int, spec: ImageSpec,
                 skipped: list[str], whole: bool) -> Iterator[Batch]:
    """Batches of up to `size`, in order; the next batch is decoded while the caller processes the current one.

    For each image that cannot be read, a line is appended to `skipped`. `whole`: the items are a whole source, not
    the share of one process.

    Raises:
        DataError: no image of a `whole` source can be read.
    """
    images, empty = list[DecodedImage](), True
    with contextlib.closing(read_images(items, spec, 2 * size)) as results:
        for result in results:
            if isinstance(result, UnreadableImage):
                skipped.append(f"{result.name}: {result.error}")
                continue
            images.append(result)
            if len(images) == size:
                yield _batch(images)
                images, empty = [], False
    if images:
        yield _batch(images)
    # The share of one process may consist of a single unreadable image.
    elif empty and whole:
        raise nothing_readable(source, skipped)


def _batch(images: Sequence[DecodedImage]) -> Batch:
    names, pixels, labels, _ = zip(*images)
    return Batch(np.stack(pixels), None if None in labels else np.asarray(labels, np.int64), None, list(names))


def decode(file: str | Path | IO[bytes]) -> Image.Image:
    """Decodes an image of one of FORMATS as RGB, by the rules of `as_rgb`, and keeps its EXIF data.

    Raises one of UNREADABLE.
    """
    try:
        with Image.open(file, formats=tuple(FORMATS)) as image:
            return as_rgb(image)
    # Pillow's own message contains a memory address.
    except UnidentifiedImageError as error:
        raise ValueError("it is not an image of a known format") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"it has more than the {MOST_PIXELS:,} pixels that are allowed") from error
    except UNREADABLE:
        raise
    # Some decoders raise struct.error or IndexError.
    except Exception as error:
        raise ValueError(f"it is damaged ({reason(error)})") from error


def spread(count: int, limit: int | None) -> NDArray[np.int64]:
    """At most `limit` of the numbers 0..count-1, evenly spaced: a prefix of sorted images would be a single class."""
    return np.linspace(0, count - 1, min(limit or count, count)).astype(np.int64)


class IndexedImages(abc.ABC):
    """Images with random access: an `ImageSet`, and `Samples` if they have labels.

    `items` are the numbers that `_read` and `_name` accept.
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
        """Every `world`-th image, starting at number `rank`."""
        part = copy.copy(self)
        part._items, part._whole, part.skipped = self._items[rank::world], world == 1, []
        return part

    def batches(self, size: int) -> Iterator[Batch]:
        """See `ImageSet`.

        Raises:
            DataError: no image can be read.
        """
        self.skipped = []
        items = ((self._name(item), functools.partial(self._read, item)) for item in self._items)
        return read_batches(self.name, items, size, self._spec, self.skipped, self._whole)

    def sample(self, index: int, epoch: int) -> tuple[Image.Image, int]:
        """An image at its original size, and its label; see `Samples`.

        Raises:
            DataError: the images have no labels.
            one of UNREADABLE: the image is damaged or missing.
        """
        image, label = self._read(self._items[index])
        if label is None:
            raise DataError(NO_LABELS.format(self.name))
        return image, label

    def name_of(self, index: int) -> str:
        return self._name(self._items[index])

    @abc.abstractmethod
    def _read(self, item: int) -> tuple[Image.Image, int | None]:
        """The RGB image and its label; raises one of UNREADABLE."""

    @abc.abstractmethod
    def _name(self, item: int) -> str:
        """The name of an image, for messages."""


def nothing_readable(name: str, skipped: Sequence[str]) -> DataError:
    """The error if every image was skipped."""
    first = f"; the first: {skipped[0]}" if skipped else ""
    return DataError(f"None of the {len(skipped)} images in {name} can be read{first}.")
