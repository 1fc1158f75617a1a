"""Image folders: flat, or one subfolder per class."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..config import ImageSpec
from ..errors import DataError, did_you_mean
from .images import UNREADABLE, Batch
from .preprocess import resize_and_crop

SPLITS = ("train", "val", "test")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


class FolderImages:
    """The images below a folder, in the order of their paths.

    The split is the subfolder of its name; "test" is also `val`, or a folder without any split. If
    images lie in subfolders, each subfolder is a class, numbered in alphabetical order.
    """

    mirror = True

    def __init__(self, folder: str | Path, spec: ImageSpec, split: str = "test", limit: int | None = None) -> None:
        root = _split_folder(Path(folder), split)
        paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not paths:
            raise DataError(f"{root} holds no images ({', '.join(sorted(SUFFIXES))}); name a folder that does.")
        classes = sorted({p.relative_to(root).parts[0] for p in paths if len(p.relative_to(root).parts) > 1})
        if classes and any(p.parent == root for p in paths):
            raise DataError(f"{root} has images both beside and inside its subfolders; "
                            "keep one subfolder per class, or no subfolders.")
        self.name, self.class_names = str(folder), tuple(classes) or None
        self.skipped: list[str] = []
        number = {name: i for i, name in enumerate(classes)}
        if limit and classes:                                              # a prefix would be one class only
            paths = [paths[i] for i in np.linspace(0, len(paths) - 1, min(limit, len(paths))).astype(int)]
        self._items = [(p, number.get(p.relative_to(root).parts[0])) for p in paths[:limit]]
        self._spec = spec

    def __len__(self) -> int:
        return len(self._items)

    def batches(self, size: int, epoch: int | None = None) -> Iterator[Batch]:
        order = np.arange(len(self._items))
        flip = np.zeros(len(self._items), bool)
        if epoch is not None:
            rng = np.random.default_rng([epoch, 1])
            rng.shuffle(order)
            flip = rng.random(len(order)) < 0.5
        self.skipped = []
        pixels, labels, names = [], [], []
        for i in order:
            path, label = self._items[i]
            try:
                with Image.open(path) as image:
                    array = resize_and_crop(image, self._spec)
            except UNREADABLE as error:
                self.skipped.append(f"{path}: {error}")
                continue
            pixels.append(array[:, ::-1] if flip[i] else array)
            labels.append(label)
            names.append(str(path))
            if len(pixels) == size:
                yield self._batch(pixels, labels, names)
                pixels, labels, names = [], [], []
        if pixels:
            yield self._batch(pixels, labels, names)
        if len(self.skipped) == len(self._items):
            raise DataError(f"None of the {len(self._items)} images in {self.name} can be read; "
                            f"the first: {self.skipped[0]}.")

    def sample(self, index: int, epoch: int) -> tuple[Image.Image, int]:
        """An image of its own size and its label; see `Samples`.

        Raises:
            DataError: the images have no labels.
            one of UNREADABLE: the image is damaged or gone.
        """
        path, label = self._items[index]
        if label is None:
            raise DataError(f"{self.name} has no labels; put the images of each class in a subfolder of its own.")
        with Image.open(path) as image:
            return image.convert("RGB"), label

    def name_of(self, index: int) -> str:
        return str(self._items[index][0])

    def _batch(self, pixels: list, labels: list, names: list[str]) -> Batch:  # type: ignore[type-arg]
        return Batch(np.stack(pixels), np.asarray(labels, np.int64) if self.class_names else None, None, list(names))


def _split_folder(folder: Path, split: str) -> Path:
    """Raises DataError where falling back would mix splits."""
    if split not in SPLITS:
        raise DataError(f"Unknown split {split!r}.{did_you_mean(split, SPLITS)}")
    choices = (split, "val") if split == "test" else (split,)
    for name in choices:
        if (folder / name).is_dir():
            return folder / name
    if split == "test" and not (folder / "train").is_dir():
        return folder
    raise DataError(f"{folder} has no subfolder {' or '.join(choices)}; put the images of each split in one, "
                    "with a subfolder per class.")
