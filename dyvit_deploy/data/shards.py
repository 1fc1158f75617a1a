"""WebDataset shards: tar files of images (`000001.jpg`) with their class numbers (`000001.cls`) beside them.

Read by the webdataset library; timm's reader on top of it neither names nor counts what it skips.
"""
from __future__ import annotations

import copy
import functools
import io
import json
import random
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ..config import ImageSpec
from ..errors import DataError, reason
from ..optional import require
from .images import UNREADABLE, Batch
from .reading import SPLITS, Read, decode, read_batches, split_names, spread

IMAGES = ("jpg", "jpeg", "png", "webp")
INFO = ("_info.json", "info.json")          # timm's description of a data set
CLASSES = "classes.txt"
SHUFFLED = 1000                             # encoded images that a stream draws the next one from


@dataclass(frozen=True)
class Shard:
    """What the headers of a tar file tell: images before the damage, if any, and their class numbers."""

    images: int
    labels: frozenset[int]
    damage: str | None


class ShardImages:
    """The images of the .tar files of a split in a folder: an `ImageSet`, and a `Stream` for training.

    A split is what timm's `_info.json` says, else a subfolder of its name, else the files with its name in theirs
    (`train-0000.tar`); "test" is also the validation split, or shards without any split. Class names are the lines
    of `classes.txt`, else the numbers "0", "1", ... up to the largest in the shards.
    """

    mirror = True

    def __init__(self, folder: str | Path, spec: ImageSpec, split: str = "test", limit: int | None = None) -> None:
        require("webdataset", extra="train")
        self.name = f"wds/{folder}"
        self.skipped: list[str] = []
        self._shards, count, self.split = _find_shards(Path(folder), split)
        names = _class_names(Path(folder))
        if count is None or names is None:                                  # reads every header, of all shards
            found = [scan_shard(path) for path in self._shards]
            labels = frozenset().union(*(shard.labels for shard in found))
            count = count or sum(shard.images for shard in found)
            names = names or tuple(str(i) for i in range(max(labels, default=-1) + 1))
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
        """True when the folder holds that split by its own name."""
        return any(_shards_of(Path(folder), name) for name in SPLITS[split])

    def part(self, rank: int, world: int) -> ShardImages:
        """Every `world`-th image from number `rank` on; every process reads all shards, which is little work beside
        decoding."""
        part = copy.copy(self)
        part._rank, part._world, part.skipped = rank, world, []
        return part

    def batches(self, size: int) -> Iterator[Batch]:
        """Images in the order of the shards; see `ImageSet`.

        Raises:
            DataError: not one image can be read.
        """
        self.skipped = []
        return read_batches(self.name, self._chosen(), size, self._spec, self.skipped, whole=self._world == 1)

    def _chosen(self) -> Iterator[tuple[str, Read]]:
        chosen = spread(self._count, self._limit)
        mine = set(chosen[self._rank::self._world].tolist())
        damage = self.skipped if self._rank == 0 else []                    # once, not by every process
        for number, sample in enumerate(raw for path in self._shards for raw in _read_shard(path, damage)):
            # The count may come from an info file that tells too little.
            if number in mine or (not self._limit and number >= self._count and number % self._world == self._rank):
                yield _name(sample), functools.partial(self._decode, sample)
            if self._limit and number == chosen[-1]:
                return

    def stream(self, epoch: int, rank: int, world: int) -> Iterator[tuple[Image.Image, int]]:
        """The share of one process, and in a DataLoader of its worker; see `Stream`.

        Shards are dealt out to processes and workers in an order drawn for the epoch, and images drawn from a
        thousand at a time. Where there are fewer shards than takers, every taker reads all and keeps its share of
        the images. Shares may differ by some images; each image is in one of them.
        """
        worker = require("torch").utils.data.get_worker_info()
        workers = worker.num_workers if worker else 1
        taker, takers = rank * workers + (worker.id if worker else 0), world * workers
        shards = list(self._shards)
        random.Random(epoch).shuffle(shards)                                # alike for every taker
        by_shard = len(shards) >= takers
        mine = shards[taker::takers] if by_shard else shards
        damage = self.skipped if by_shard or taker == 0 else []
        samples = (raw for path in mine for raw in _read_shard(path, damage))
        shuffle = require("webdataset", extra="train").shuffle(SHUFFLED, rng=random.Random(f"{epoch} {taker}"))
        for sample in shuffle(samples if by_shard else islice(samples, taker, None, takers)):
            try:
                yield self._decode(sample)
            except UNREADABLE as error:
                self.skipped.append(f"{_name(sample)}: {error}")

    def _decode(self, sample: dict[str, Any]) -> tuple[Image.Image, int]:
        """An RGB image and its label, or one of UNREADABLE."""
        content = next((sample[suffix] for suffix in IMAGES if suffix in sample), None)
        if content is None:
            raise no_image()
        if "cls" not in sample:
            raise ValueError("there is no .cls file")
        label = int(sample["cls"])
        if not 0 <= label < len(self.class_names or ()):
            raise ValueError(f"its class {label} is none of the {len(self.class_names or ())} classes")
        return decode(io.BytesIO(content)), label


def no_image() -> ValueError:
    """The error of a sample that has none."""
    return ValueError(f"there is no {' or '.join(f'.{suffix}' for suffix in IMAGES)} file")


def _find_shards(folder: Path, split: str) -> tuple[list[Path], int | None, str | None]:
    """The shards of a split, how many images they should hold if that is known, and the split's own name."""
    names = split_names(split)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; wds/ takes one with .tar shards.")
    info = _info(folder)
    for name in names:
        shards = _shards_of(folder, name)
        if shards:
            missing = [path for path in shards if not path.is_file()]
            if missing:
                raise DataError(f"{missing[0]} is missing, which {folder}'s info file names; download it again.")
            return shards, info[name][1] if name in info else None, name
    if split == "test" and not info and not _shards_of(folder, "train") and (shards := sorted(folder.glob("*.tar"))):
        return shards, None, None
    raise DataError(f"{folder} has no {split} shards; name them {split}-0000.tar, {split}-0001.tar, ...")


def _shards_of(folder: Path, name: str) -> list[Path]:
    info = _info(folder)
    if name in info:
        return info[name][0]
    inside = sorted((folder / name).glob("*.tar"))
    return inside or sorted(p for p in folder.glob("*.tar") if re.search(rf"(^|[-_.]){name}[-_.]", p.name))


def _info(folder: Path) -> dict[str, tuple[list[Path], int]]:
    """Shards and number of images of each split, from timm's info file; empty without one."""
    path = next((folder / name for name in INFO if (folder / name).is_file()), None)
    if path is None:
        return {}
    try:
        return {name: ([folder / file for file in split["filenames"]], int(split["num_samples"]))
                for name, split in json.loads(path.read_text())["splits"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not timm's description of shards ({reason(error)}); it needs, under splits, each "
                        "split's filenames and num_samples; mend it, or remove it.") from error


def _class_names(folder: Path) -> tuple[str, ...] | None:
    path = folder / CLASSES
    if not path.is_file():
        return None
    return tuple(line.strip() for line in path.read_text("utf-8", "replace").splitlines() if line.strip())


def scan_shard(path: Path) -> Shard:
    """What a shard holds, from its headers; images are not read."""
    return _scan(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=10_000)
def _scan(path: Path, changed: int) -> Shard:
    keys: set[str] = set()
    labels: set[int] = set()
    damage: list[str] = []
    for member in shard_members(path, damage):
        keys.add(member.key)
        if member.suffix == "cls" and (text := member.read().strip()).isdigit():
            labels.add(int(text))
    return Shard(len(keys), frozenset(labels), damage[0] if damage else None)


@dataclass(frozen=True)
class Member:
    """One file in a shard: `offset` and `size` are where its bytes lie, if the shard is not compressed."""

    key: str
    suffix: str
    offset: int
    size: int
    read: Callable[[], bytes]


def shard_members(path: Path, damage: list[str], mode: Literal["r:*", "r:"] = "r:*") -> Iterator[Member]:
    """The files of a shard in their order, from its headers; contents are read on request, before the next one.

    `damage` gets what ended it early, if anything did. `mode` "r:" takes no compressed tar.
    """
    split_name: Callable[[str], tuple[str, str]] = require("webdataset.tariterators", extra="train").base_plus_ext
    found = False
    try:
        with tarfile.open(path, mode) as tar:
            for member in tar:
                key, suffix = split_name(member.name)
                if member.isreg() and key is not None:
                    found = True
                    yield Member(key, suffix.lower(), member.offset_data, member.size,
                                 functools.partial(_content, tar, member))
                tar.members = []  # type: ignore[attr-defined]             # or tarfile remembers every one
            assert tar.fileobj is not None
            # Python's tarfile takes a damaged header for the end; the true end is a block of zeros.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                damage.append("unexpected end of data" if tar.offset >= path.stat().st_size else "damaged header")
    except (tarfile.TarError, OSError, EOFError) as error:
        damage.append(reason(error) if found else "no readable tar file" + (" without compression" * (mode == "r:")))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def _read_shard(path: Path, damage: list[str]) -> Iterator[dict[str, Any]]:
    """The samples of a shard as bytes by suffix, up to its damage, which goes into `damage`."""
    samples = require("webdataset.tariterators", extra="train").tarfile_samples
    # Not every damage raises here, so the scan names it.
    for sample in samples([{"url": str(path.resolve())}], handler=lambda error: True):
        yield sample | {"shard": path}
    if found := scan_shard(path).damage:
        damage.append(damage_line(path, found))


def damage_line(path: Path, damage: str) -> str:
    return f"{path}: {damage}; what comes after it is lost"


def _name(sample: dict[str, Any]) -> str:
    return f"{sample['shard']}/{sample['__key__']}"

