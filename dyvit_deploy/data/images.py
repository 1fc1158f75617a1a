"""What every image source offers, and the one door to them."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import DataError, did_you_mean

T = TypeVar("T")
Track = Callable[[Iterable[T], str, int], Iterable[T]]


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
    """A source of images. `skipped` fills with one line per unreadable image while it is read."""

    name: str
    class_names: tuple[str, ...] | None
    skipped: list[str]

    def __len__(self) -> int: ...

    def batches(self, size: int, epoch: int | None = None) -> Iterator[Batch]:
        """Batches of up to `size`; an `epoch` number shuffles and augments for training."""
        ...


class NoiseImages:
    """Random pixels, for when there are no images. Good enough for speed, poor evidence for parity."""

    def __init__(self, config: ModelConfig, count: int, seed: int = 0) -> None:
        self.name = "noise"
        self.class_names: tuple[str, ...] | None = None
        self.skipped: list[str] = []
        self._size, self._count, self._seed = config.image_size, count, seed

    def __len__(self) -> int:
        return self._count

    def batches(self, size: int, epoch: int | None = None) -> Iterator[Batch]:
        rng = np.random.default_rng(self._seed)
        for start in range(0, self._count, size):
            count = min(size, self._count - start)
            images = rng.integers(0, 256, (count, *self._size, 3), dtype=np.uint8)
            yield Batch(images, None, None, [f"noise {start + i}" for i in range(count)])


def open_images(source: str | None, config: ModelConfig, split: str = "test", limit: int | None = None) -> ImageSet:
    """The images called `source`, sized for `config`.

    Args:
        source: "digits", an image folder (flat, or one subfolder per class, possibly below
            subfolders named after the splits), or None for noise.
        split: "train", "val" or "test".
        limit: at most that many images.

    Raises:
        DataError: no such source, or nothing usable in it.
    """
    from .digits import DigitScenes
    from .folder import FolderImages

    if limit is not None and limit < 1:
        raise DataError(f"At least 1 image is needed, not {limit}.")
    if source is None:
        return NoiseImages(config, limit or 32)
    named: dict[str, Any] = {"digits": DigitScenes}
    if source in named:                                                    # a folder of that name is ./digits
        images: ImageSet = named[source](config, split, limit)
        return images
    if Path(source).is_dir():
        return FolderImages(source, config, split, limit)
    raise DataError(f"{source!r} is neither an image folder nor a data set.{did_you_mean(source, named)}")
