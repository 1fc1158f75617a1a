"""Image folders: flat, or one subfolder per class."""
from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from PIL import Image

from ..config import ImageSpec
from ..errors import DataError
from .reading import SPLITS, IndexedImages, decode, split_names, spread
from .walk import IMAGE_SUFFIXES, LeftOut, walk


class FolderImages(IndexedImages):
    """The images in a folder and its subfolders, sorted by path; see `walk` for what is left out.

    A split is a subfolder with its name; "val" may also be called "validation" or "valid". Without a "test" subfolder,
    "test" falls back to the validation split, then to a folder that has no splits. If the images are in subfolders,
    each subfolder is a class, numbered by `in_order`.
    """

    def __init__(self, folder: str | Path, spec: ImageSpec, split: str = "test", limit: int | None = None) -> None:
        root = _split_folder(Path(folder), split)
        left_out = LeftOut()
        paths = [Path(path) for path in walk(str(root), IMAGE_SUFFIXES, left_out)]
        left_out.tell(str(root))
        if not paths:
            raise DataError(f"{root} holds no images ({', '.join(IMAGE_SUFFIXES)}); name a folder that does.")
        classes = in_order({p.relative_to(root).parts[0] for p in paths if len(p.relative_to(root).parts) > 1})
        if classes:
            _check_classes(root, classes, any(p.parent == root for p in paths), left_out.loops)
        number = {name: i for i, name in enumerate(classes)}
        self._files = [(p, number.get(p.relative_to(root).parts[0])) for p in paths]
        chosen = spread(len(paths), limit) if classes else range(min(limit or len(paths), len(paths)))
        super().__init__(str(folder), tuple(classes) or None, spec, [int(i) for i in chosen],
                         root.name if root != Path(folder) else None)

    @staticmethod
    def has_split(folder: str, split: str) -> bool:
        """True if the folder contains `split` itself, without a fallback."""
        return any((Path(folder) / name).is_dir() for name in SPLITS[split])

    def _read(self, item: int) -> tuple[Image.Image, int | None]:
        path, label = self._files[item]
        return decode(path), label

    def _name(self, item: int) -> str:
        return str(self._files[item][0])


def in_order(names: Collection[str]) -> list[str]:
    """The names of classes in the order of their numbers: if they are the numbers 0 to N-1, with or without leading
    zeros, by value, else alphabetical."""
    plain = all(name.isascii() and name.isdigit() and len(name) < 10 for name in names)
    by_value = plain and sorted(map(int, names)) == list(range(len(names)))
    return sorted(names, key=int) if by_value else sorted(names)


def _check_classes(root: Path, classes: list[str], loose: bool, loops: list[str]) -> None:
    """Raises DataError if the classes are ambiguous. `loose`: some images are directly in `root`, beside folders;
    `loops`: links that were not followed."""
    if loose:
        raise DataError(f"{root} has images both beside and inside its subfolders; "
                        "keep one subfolder per class, or no subfolders.")
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        # Skipping an empty class would renumber all classes after it.
        if str(folder) in loops:
            raise DataError(f"{folder} is a link to a folder that contains it, and cannot be a class; remove it.")
        if folder.name not in classes:
            raise DataError(f"{folder} is a class without images; fill it, or remove it.")


def _split_folder(folder: Path, split: str) -> Path:
    """The folder of a split. Raises DataError if there is none, or if the fallback would mix splits."""
    for name in split_names(split):
        if (folder / name).is_dir():
            return folder / name
    if split == "test" and not (folder / "train").is_dir():
        return folder
    raise DataError(f"{folder} has no subfolder {split}; put the images of each split in one, "
                    "with a subfolder per class.")
