"""WebDataset shards: tar files with images (`000001.jpg`) and their class numbers (`000001.cls`).

The webdataset library reads them directly, without timm's reader, which does not report what it skips.
"""
from __future__ import annotations

import copy
import functools
import io
import os
import random
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypedDict

from PIL import Image

from ..config import ImageSpec
from ..errors import ArtifactError, ConfigError, DataError, reason
from ..optional import require
from ..settings.untrusted import check_text, read_json, typed
from .images import UNREADABLE, Batch
from .labels import numbers_as_names
from .reading import SPLITS, ImageReader, decode, read_batches, split_names, spread
from .walk import IMAGE_SUFFIXES

IMAGES = tuple(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
# timm's description of a data set.
INFO = ("_info.json", "info.json")
CLASSES = "classes.txt"
# Characters of the name of a shard, with its folders.
LONGEST_FILE = 1000
# The largest class number of no labels, and the digits that are read of one.
NO_LABEL, MOST_DIGITS = (-1, ""), 30
# Size of the buffer of encoded images from which a stream draws at random.
SHUFFLE_BUFFER = 1000
# An image takes more bytes of a shard than that, even compressed.
LEAST_BYTES = 64


class InfoSplit(TypedDict):
    """One split in timm's description."""

    filenames: tuple[str, ...]
    num_samples: int


class Info(TypedDict):
    """What is read of timm's description."""

    splits: dict[str, InfoSplit]


@dataclass(frozen=True)
class Shard:
    """The content of a tar file by its headers: the number of images before any damage, and the largest of their class
    numbers (-1 without any), with the name of its file."""

    images: int
    largest: tuple[int, str]
    damage: str | None


class ShardImages:
    """The images in the .tar files of a split in a folder: an `ImageSet`, and a `Stream` for training.

    timm's `_info.json` defines the splits; without it, a split is a subfolder with its name, or the files whose names
    contain it (`train-0000.tar`). "test" falls back to the validation split, then to shards without any split. Class
    names are the lines of `classes.txt`, else the numbers "0", "1", ... up to the largest in the shards.
    """

    mirror = True

    def __init__(self, folder: str | Path, spec: ImageSpec, split: str = "test", limit: int | None = None) -> None:
        require("webdataset", extra="train")
        self.name = f"wds/{folder}"
        self.skipped: list[str] = []
        self._shards, count, self.split = _find_shards(Path(folder), split)
        names = _class_names(Path(folder))
        room = sum(path.stat().st_size for path in self._shards) // LEAST_BYTES
        if count is not None and not 0 <= count <= room:
            raise DataError(f"The info file of {self.name} counts {count} images, and its {split} shards have room for "
                            f"{room} at most; correct num_samples, or remove the file.")
        if count is None or names is None:
            # This reads every header of all shards.
            scans = [scan_shard(path) for path in self._shards]
            largest, where = max((shard.largest for shard in scans), default=NO_LABEL)
            count = count or sum(shard.images for shard in scans)
            names = names or numbers_as_names(largest, where)
        if not count:
            damage = next((f": {shard.damage}" for shard in map(scan_shard, self._shards) if shard.damage), "")
            raise DataError(f"The {split} shards of {self.name} hold no images{damage}; an image is a file like "
                            "000001.jpg, with its class number in 000001.cls.")
        if not names:
            raise DataError(f"{self.name} has no labels; put the class number of 000001.jpg in 000001.cls.")
        self.class_names: tuple[str, ...] | None = names
        self._spec, self._count, self._limit = spec, count, limit
        self._rank, self._world = 0, 1

    def __len__(self) -> int:
        return len(range(self._rank, min(self._limit or self._count, self._count), self._world))

    @staticmethod
    def has_split(folder: str, split: str) -> bool:
        """True if the folder contains `split` itself, without a fallback."""
        return any(_shards_of(Path(folder), name) for name in SPLITS[split])

    def part(self, rank: int, world: int) -> ShardImages:
        """Every `world`-th image, starting at number `rank`. Every process reads all shards, which costs little
        compared to decoding."""
        part = copy.copy(self)
        part._rank, part._world, part.skipped = rank, world, []
        return part

    def batches(self, size: int) -> Iterator[Batch]:
        """Images in the order of the shards; see `ImageSet`.

        Raises:
            DataError: no image can be read.
        """
        self.skipped = []
        return read_batches(self.name, self._chosen(), size, self._spec, self.skipped, whole=self._world == 1)

    def _chosen(self) -> Iterator[tuple[str, ImageReader]]:
        chosen = spread(self._count, self._limit)
        mine = set(chosen[self._rank::self._world].tolist())
        # Only one process reports damage.
        damage = self.skipped if self._rank == 0 else []
        for number, sample in enumerate(raw for path in self._shards for raw in _read_shard(path, damage)):
            # The count may come from an info file and be too low.
            if number in mine or (not self._limit and number >= self._count and number % self._world == self._rank):
                yield _name(sample), functools.partial(self._decode, sample)
            if self._limit and number == chosen[-1]:
                return

    def stream(self, epoch: int, rank: int, world: int) -> Iterator[tuple[Image.Image, int]]:
        """The share of one process or, in a DataLoader, of one of its workers; see `Stream`.

        Each epoch shuffles the shards, divides them among all readers (the workers of all processes), and draws
        images from a buffer of SHUFFLE_BUFFER. If there are fewer shards than readers, every reader reads all shards
        and keeps its share of the images. The shares may differ in size; each image is in exactly one.
        """
        worker = require("torch").utils.data.get_worker_info()
        workers = worker.num_workers if worker else 1
        reader, readers = rank * workers + (worker.id if worker else 0), world * workers
        shards = list(self._shards)
        # Every reader must shuffle alike.
        random.Random(epoch).shuffle(shards)
        by_shard = len(shards) >= readers
        mine = shards[reader::readers] if by_shard else shards
        damage = self.skipped if by_shard or reader == 0 else []
        samples = (raw for path in mine for raw in _read_shard(path, damage))
        shuffle = require("webdataset", extra="train").shuffle(SHUFFLE_BUFFER, rng=random.Random(f"{epoch} {reader}"))
        for sample in shuffle(samples if by_shard else islice(samples, reader, None, readers)):
            try:
                yield self._decode(sample)
            except UNREADABLE as error:
                self.skipped.append(f"{_name(sample)}: {error}")

    def _decode(self, sample: dict[str, Any]) -> tuple[Image.Image, int]:
        """The RGB image and its label; raises one of UNREADABLE."""
        content = next((sample[suffix] for suffix in IMAGES if suffix in sample), None)
        if content is None:
            raise no_image()
        if "cls" not in sample:
            raise ValueError("there is no .cls file")
        label = int(sample["cls"])
        if not 0 <= label < len(self.class_names or ()):
            raise ValueError(f"its class {label} is not one of the {len(self.class_names or ())} classes")
        return decode(io.BytesIO(content)), label


def no_image() -> ValueError:
    """The error for a sample without an image."""
    return ValueError(f"there is no {', '.join(IMAGE_SUFFIXES[:-1])} or {IMAGE_SUFFIXES[-1]} file")


def _find_shards(folder: Path, split: str) -> tuple[list[Path], int | None, str | None]:
    """The shards of a split, their number of images by the info file (None without one), and the split's name."""
    names = split_names(split)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; wds/ takes one with .tar shards.")
    info = _info(folder)
    for name in names:
        shards = _shards_of(folder, name)
        if shards:
            # Unlike Path.is_file, this never raises.
            missing = [path for path in shards if not os.path.isfile(path)]
            if missing:
                raise DataError(f"{missing[0]} is missing, which {folder}'s info file names; download it again.")
            return shards, info[name][1] if name in info else None, name
    if split == "test" and not info and not _shards_of(folder, "train") and (shards := _tar_files(folder)):
        return shards, None, None
    raise DataError(f"{folder} has no {split} shards; name them {split}-0000.tar, {split}-0001.tar, ...")


def _shards_of(folder: Path, name: str) -> list[Path]:
    info = _info(folder)
    if name in info:
        return info[name][0]
    return _tar_files(folder / name) or [p for p in _tar_files(folder) if re.search(rf"(^|[-_.]){name}[-_.]", p.name)]


def _tar_files(folder: Path) -> list[Path]:
    """The shards in a folder. Hidden ones are parts of a copy that has not finished, or notes of macOS."""
    return sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))


def _info(folder: Path) -> dict[str, tuple[list[Path], int]]:
    """Shards and number of images of each split, from timm's info file; empty without one."""
    path = next((folder / name for name in INFO if (folder / name).is_file()), None)
    if path is None:
        return {}
    try:
        info = typed(read_json(path, finite=False), Info, path.name)
        for file in (file for split in info["splits"].values() for file in split["filenames"]):
            check_text(file, LONGEST_FILE)
        return {name: ([folder / file for file in split["filenames"]], split["num_samples"])
                for name, split in info["splits"].items()}
    except (ArtifactError, ConfigError) as error:
        raise DataError(f"{path} is not timm's description of shards ({reason(error)}); it needs, under splits, "
                        "each split's filenames and num_samples; fix it, or remove it.") from error


def _class_names(folder: Path) -> tuple[str, ...] | None:
    path = folder / CLASSES
    if not path.is_file():
        return None
    return tuple(line.strip() for line in path.read_text("utf-8", "replace").splitlines() if line.strip())


def scan_shard(path: Path) -> Shard:
    """Reads the headers of a shard, not its images."""
    return _scan(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=10_000)
def _scan(path: Path, modified_ns: int) -> Shard:
    keys: set[str] = set()
    largest, damage = NO_LABEL, list[str]()
    for member in shard_members(path, damage):
        keys.add(member.key)
        # Python converts no number of more than 4,300 digits.
        if member.suffix == "cls" and (text := member.read().strip()[:MOST_DIGITS]).isdigit():
            largest = max(largest, (int(text), f"{path}/{member.key}.cls"))
    return Shard(len(keys), largest, damage[0] if damage else None)


@dataclass(frozen=True)
class Member:
    """One file in a shard. `offset` and `size` give its bytes in an uncompressed shard."""

    key: str
    suffix: str
    offset: int
    size: int
    read: Callable[[], bytes]


def shard_members(path: Path, damage: list[str], mode: Literal["r:*", "r:"] = "r:*") -> Iterator[Member]:
    """The files of a shard, in order, by its headers. `Member.read` reads the content, before the next file only.

    If the shard ends early, the reason is appended to `damage`. `mode` "r:" refuses compressed tar files.
    """
    split_name: Callable[[str], tuple[str, str]] = require("webdataset.tariterators", extra="train").base_plus_ext
    any_member = False
    try:
        with tarfile.open(path, mode) as tar:
            for member in tar:
                key, suffix = split_name(member.name)
                if member.isreg() and key is not None:
                    any_member = True
                    yield Member(key, suffix.lower(), member.offset_data, member.size,
                                 functools.partial(_content, tar, member))
                # Otherwise tarfile keeps every member in memory.
                tar.members = []  # type: ignore[attr-defined]
            assert tar.fileobj is not None
            # Python's tarfile treats a damaged header as the end; the true end is a block of zeros.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                damage.append("unexpected end of data" if tar.offset >= path.stat().st_size else "damaged header")
    except (tarfile.TarError, OSError, EOFError) as error:
        damage.append(reason(error) if any_member else
                      "no readable tar file" + (" without compression" * (mode == "r:")))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def _read_shard(path: Path, damage: list[str]) -> Iterator[dict[str, Any]]:
    """The samples of a shard, each as bytes by suffix. A shard that ends early adds a line to `damage`."""
    samples = require("webdataset.tariterators", extra="train").tarfile_samples
    # Some damage raises no error here; the scan below finds it.
    for sample in samples([{"url": str(path.resolve())}], handler=lambda error: True):
        yield sample | {"shard": path}
    if cause := scan_shard(path).damage:
        damage.append(damage_line(path, cause))


def damage_line(path: Path, damage: str) -> str:
    return f"{path}: {damage}; what comes after it is lost"


def _name(sample: dict[str, Any]) -> str:
    return f"{sample['shard']}/{sample['__key__']}"

