"""Opens image sources by name or folder."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..config import ImageSpec
from ..errors import DataError, did_you_mean
from .digits import DigitScenes
from .folder import FolderImages
from .hub import HubImages, load
from .images import ImageSet, NoiseImages
from .shards import ShardImages


class DataSource(NamedTuple):
    """One kind of source: `open(path, spec, split, limit)`, and `has_split(path, split)`, without fallbacks."""

    open: Callable[[str, ImageSpec, str, int | None], ImageSet]
    has_split: Callable[[str, str], bool]


NAMED = {"digits": DataSource(lambda name, *rest: DigitScenes(*rest), DigitScenes.has_split)}
PREFIXED = {"wds": DataSource(ShardImages, ShardImages.has_split), "hfds": DataSource(HubImages, HubImages.has_split)}
FOLDER = DataSource(FolderImages, FolderImages.has_split)


def _find(source: str) -> tuple[DataSource, str]:
    """The kind of `source`, and the path to open. A folder named like a data set needs "./", as in ./digits."""
    prefix, _, path = source.partition("/")
    if path and prefix in PREFIXED:
        return PREFIXED[prefix], path
    return NAMED.get(source, FOLDER), source


def open_images(source: str | None, spec: ImageSpec, split: str = "test", limit: int | None = None) -> ImageSet:
    """Opens the images of `source`, resized and cropped by `spec`.

    Args:
        source: "digits"; an image folder (flat, or one subfolder per class, possibly below `train`, `val` and
            `test`); "wds/PATH", a folder of WebDataset shards; "hfds/NAME", a Hugging Face data set or a local
            folder of one; or None for noise.
        split: "train", "val" or "test".
        limit: the maximum number of images.

    Raises:
        DataError: the source does not exist, or has no usable images.
        MissingDependency: shards and Hugging Face data sets need the extra `train`.
    """
    if limit is not None and limit < 1:
        raise DataError(f"At least 1 image is needed, not {limit}.")
    if source is None:
        return NoiseImages(spec, limit or 32)
    check_source(source)
    kind, path = _find(source)
    return kind.open(path, spec, split, limit)


def check_source(source: str) -> None:
    """Raises DataError if `source` is neither a data set nor a folder; call it before long work."""
    kind, path = _find(source)
    if kind is PREFIXED["hfds"]:
        load(path)
    elif source not in NAMED and not Path(path).is_dir():
        raise DataError(f"{source!r} is neither an image folder nor a data set."
                        f"{did_you_mean(source, (*NAMED, 'wds/PATH', 'hfds/NAME'))}")


def open_calibration(source: str | None, spec: ImageSpec, limit: int | None = None) -> ImageSet:
    """Images for calibration: the train split, else val, else a folder without splits; noise if `source` is None."""
    return open_images(source, spec, _first_split(source, "train", "val"), limit)


def open_gate(source: str | None, spec: ImageSpec, limit: int | None = None) -> ImageSet:
    """Images to check a calibrated artifact on: the val split, else train, else a folder without splits. The test
    split is never used."""
    return open_images(source, spec, _first_split(source, "val", "train"), limit)


def gate_is_separate(source: str | None) -> bool:
    """True if `open_gate` and `open_calibration` use different images."""
    return _first_split(source, "train", "val") != _first_split(source, "val", "train")


def _first_split(source: str | None, *splits: str) -> str:
    if source is None:
        return "test"
    kind, path = _find(source)
    return next((split for split in splits if kind.has_split(path, split)), "test")
