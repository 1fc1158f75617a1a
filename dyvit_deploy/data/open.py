"""The one door to images: a name or a folder in, an image set out."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..config import ImageSpec
from ..errors import DataError, did_you_mean
from .digits import DigitScenes
from .folder import FolderImages
from .images import ImageSet, NoiseImages

NAMED: dict[str, Callable[[ImageSpec, str, int | None], ImageSet]] = {"digits": DigitScenes}


def open_images(source: str | None, spec: ImageSpec, split: str = "test", limit: int | None = None) -> ImageSet:
    """The images called `source`, prepared as `spec` says.

    Args:
        source: "digits", an image folder (flat, or one subfolder per class, possibly below
            `train`, `val` and `test`), or None for noise.
        split: "train", "val" or "test".
        limit: at most that many images.

    Raises:
        DataError: no such source, or nothing usable in it.
    """
    if limit is not None and limit < 1:
        raise DataError(f"At least 1 image is needed, not {limit}.")
    if source is None:
        return NoiseImages(spec, limit or 32)
    if source in NAMED:                                                    # a folder of that name is ./digits
        return NAMED[source](spec, split, limit)
    check_source(source)
    return FolderImages(source, spec, split, limit)


def check_source(source: str) -> None:
    """Raises DataError when `source` is neither a data set nor a folder; ask before long work."""
    if source not in NAMED and not Path(source).is_dir():
        raise DataError(f"{source!r} is neither an image folder nor a data set.{did_you_mean(source, NAMED)}")


def open_calibration(source: str | None, spec: ImageSpec, limit: int | None = None) -> ImageSet:
    """Images to calibrate on: the train split, else val, else a folder without splits; None is noise."""
    return open_images(source, spec, _first_split(source, "train", "val"), limit)


def open_gate(source: str | None, spec: ImageSpec, limit: int | None = None) -> ImageSet:
    """Images to judge a calibrated artifact on: the val split, else train, else a folder without splits.
    The test split stays unseen."""
    return open_images(source, spec, _first_split(source, "val", "train"), limit)


def gate_is_separate(source: str | None) -> bool:
    """True when `open_gate` gives other images than `open_calibration`."""
    return _first_split(source, "train", "val") != _first_split(source, "val", "train")


def _first_split(source: str | None, *splits: str) -> str:
    there = [split for split in splits if source in NAMED or (source is not None and (Path(source) / split).is_dir())]
    return there[0] if there else "test"
