"""What every image source offers."""
from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config import ImageSpec

T = TypeVar("T")
Track = Callable[[Iterable[T], str, int], Iterable[T]]
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)   # what a damaged image raises


def no_track(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    """A `Track` that shows nothing; the command line passes a progress bar instead."""
    return items


class Batch(NamedTuple):
    """Images ready for a model, before normalisation.

    images: uint8 [B, height, width, 3], RGB.
    labels: int64 [B], or None when the source has none.
    boxes: float32 [B, 4], top, left, bottom, right of the object in pixels, or None.
    names: one per image, for messages.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    boxes: NDArray[np.float32] | None
    names: list[str]


class ImageSet(Protocol):
    """A source of images. `skipped` fills with one line per unreadable image while it is read; `split` is the one
    that was taken, None where the source has none or its name tells."""

    name: str
    split: str | None
    class_names: tuple[str, ...] | None
    skipped: list[str]

    def __len__(self) -> int: ...

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of up to `size`."""
        ...

    def part(self, rank: int, world: int) -> ImageSet:
        """What process `rank` of `world` evaluates; the parts of all processes are the whole, each image once."""
        ...


class Samples(Protocol):
    """A labelled source of single images in any order, for training. `mirror`: flipped images keep their class."""

    name: str
    mirror: bool
    class_names: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def sample(self, index: int, epoch: int) -> tuple[Image.Image, int]:
        """An RGB image of any size and its label; `epoch` counts from 0, and made-up sources make new images in each.

        Raises:
            one of UNREADABLE: the image is damaged or gone; take another one.
        """
        ...

    def name_of(self, index: int) -> str:
        """The image in a message."""
        ...


class Stream(Protocol):
    """A labelled source that can only be read in order, for training; fields as in `Samples` and `ImageSet`."""

    name: str
    mirror: bool
    class_names: tuple[str, ...] | None
    skipped: list[str]

    def __len__(self) -> int: ...

    def stream(self, epoch: int, rank: int, world: int) -> Iterator[tuple[Image.Image, int]]:
        """One pass over the share of one of `world` processes, in the order of `epoch`: RGB images and labels."""
        ...


class NoiseImages:
    """Random pixels, for when there are no images. Good enough for speed, poor evidence for parity."""

    split: str | None = None

    def __init__(self, spec: ImageSpec, count: int) -> None:
        self.name = "noise"
        self.class_names: tuple[str, ...] | None = None
        self.skipped: list[str] = []
        self._size, self._count, self._seed = spec.image_size, count, 0

    def __len__(self) -> int:
        return self._count

    def part(self, rank: int, world: int) -> NoiseImages:
        """A share of the images; noise has no order to keep."""
        part = copy.copy(self)
        part._count, part._seed = len(range(rank, self._count, world)), self._seed + rank
        return part

    def batches(self, size: int) -> Iterator[Batch]:
        rng = np.random.default_rng(self._seed)
        for start in range(0, self._count, size):
            count = min(size, self._count - start)
            images = rng.integers(0, 256, (count, *self._size, 3), dtype=np.uint8)
            yield Batch(images, None, None, [f"noise {start + i}" for i in range(count)])
