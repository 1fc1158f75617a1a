"""The interfaces of image sources: `ImageSet` to evaluate, `Samples` and `Stream` to train."""
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
# The errors that decoding a damaged image raises.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def no_track(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    """A `Track` without output; the command line passes a progress bar instead."""
    return items


class Batch(NamedTuple):
    """Images at the model's input size, before normalisation.

    images: uint8 [B, height, width, 3], RGB.
    labels: int64 [B], or None if the source has no labels.
    boxes: float32 [B, 4], top, left, bottom, right of the object in pixels, or None if unknown.
    names: one per image, for messages.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    boxes: NDArray[np.float32] | None
    names: list[str]


class ImageSet(Protocol):
    """A source of images.

    `skipped` lists the unreadable images, one line each, and grows while the set is read. `split` is the split in
    use, None if the source has none or if `name` already contains it.
    """

    name: str
    split: str | None
    class_names: tuple[str, ...] | None
    skipped: list[str]

    def __len__(self) -> int: ...

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of up to `size`."""
        ...

    def part(self, rank: int, world: int) -> ImageSet:
        """The share of process `rank` of `world`; the shares of all processes contain each image exactly once."""
        ...


class Samples(Protocol):
    """A labelled source with random access, for training. `mirror`: a flipped image keeps its class."""

    name: str
    mirror: bool
    class_names: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def sample(self, index: int, epoch: int) -> tuple[Image.Image, int]:
        """An RGB image of any size and its label; `epoch` counts from 0, and generated sources draw new images in each.

        Raises:
            one of UNREADABLE: the image is damaged or missing; use another one.
        """
        ...

    def name_of(self, index: int) -> str:
        """The name of an image, for messages."""
        ...


class Stream(Protocol):
    """A labelled source without random access, for training; the fields are those of `Samples` and `ImageSet`."""

    name: str
    mirror: bool
    class_names: tuple[str, ...] | None
    skipped: list[str]

    def __len__(self) -> int: ...

    def stream(self, epoch: int, rank: int, world: int) -> Iterator[tuple[Image.Image, int]]:
        """RGB images and labels: one pass over the share of process `rank` of `world`, in an order set by `epoch`."""
        ...


class NoiseImages:
    """Random pixels, for use without images. They suffice to measure speed, and are poor evidence for parity."""

    split: str | None = None

    def __init__(self, spec: ImageSpec, count: int) -> None:
        self.name = "noise"
        self.class_names: tuple[str, ...] | None = None
        self.skipped: list[str] = []
        self._size, self._count, self._seed = spec.image_size, count, 0

    def __len__(self) -> int:
        return self._count

    def part(self, rank: int, world: int) -> NoiseImages:
        """As many noise images as the share has, from another seed."""
        part = copy.copy(self)
        part._count, part._seed = len(range(rank, self._count, world)), self._seed + rank
        return part

    def batches(self, size: int) -> Iterator[Batch]:
        rng = np.random.default_rng(self._seed)
        for start in range(0, self._count, size):
            count = min(size, self._count - start)
            images = rng.integers(0, 256, (count, *self._size, 3), dtype=np.uint8)
            yield Batch(images, None, None, [f"noise {start + i}" for i in range(count)])
