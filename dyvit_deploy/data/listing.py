"""Lists the locations of unlabelled images in files, folders and shards, without reading the images.

Listing needs memory for the names of one folder only. An image's location is small enough to be sent to another
process, which then reads the image.
"""
from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..errors import DataError
from .reading import decode
from .shards import IMAGES, Member, damage_line, no_image, shard_members
from .walk import IMAGE_SUFFIXES, LeftOut, walk

SHARD = ".tar"


class ImagePlace(NamedTuple):
    """The location of an image: a file, or a byte range in a shard.

    name: its name in results; valid Unicode even if the name on disk is not.
    stamp: size and modification time of the file or shard, to detect changes.
    part: offset and size of the image in a shard, (0, 0) for a sample without an image; None for a whole file.
    """

    name: str
    path: str
    stamp: str
    part: tuple[int, int] | None = None

    def read(self) -> tuple[Image.Image, None]:
        """The RGB image, and None for its label; raises one of UNREADABLE."""
        if self.part is None:
            return decode(self.path), None
        offset, size = self.part
        if not size:
            raise no_image()
        with open(self.path, "rb") as file:
            file.seek(offset)
            return decode(io.BytesIO(file.read(size))), None


def count_images(sources: Sequence[str]) -> int:
    """How many images `list_images` finds now; the user is told what it leaves out.

    Raises:
        DataError: a source does not exist, or has no images.
    """
    total = 0
    for source in sources:
        damage, left_out = list[str](), LeftOut()
        count = sum(1 for _ in _list_one(source, damage, left_out))
        left_out.tell(source)
        if not count:
            raise DataError(_no_images(source, damage))
        total += count
    return total


def list_images(sources: Sequence[str], damage: list[str]) -> Iterator[ImagePlace]:
    """The images of `sources`, in the given order; folders are sorted by path, shards keep their own order.

    A source is an image file, a folder (with its subfolders, see `walk`), a .tar shard, or wds/FOLDER (all shards in
    the folder and its subfolders). For each shard that ends early, a line is appended to `damage`.
    """
    for source in sources:
        yield from _list_one(source, damage, LeftOut())


def _list_one(source: str, damage: list[str], left_out: LeftOut) -> Iterator[ImagePlace]:
    prefix, _, rest = source.partition("/")
    if prefix == "hfds" and rest:
        raise DataError(f"{source} cannot be predicted; save its images to a folder or to shards first.")
    shards = prefix == "wds" and bool(rest)
    path = rest if shards else source
    if os.path.isdir(path):
        if shards:
            # A folder of shards has other files by design.
            for shard in walk(path, (SHARD,), LeftOut()):
                yield from _members(shard, damage)
            return
        for entry in walk(path, IMAGE_SUFFIXES, left_out):
            yield ImagePlace(_text(entry), entry, _stamp(entry))
    elif not os.path.isfile(path):
        raise DataError(f"{source!r} is neither an image, a folder nor a .tar shard; check the path.")
    elif path.lower().endswith(SHARD):
        yield from _members(path, damage)
    elif shards:
        raise DataError(f"{path} is not a .tar shard; wds/ takes shards, or a folder of them.")
    else:
        yield ImagePlace(_text(path), path, _stamp(path))


def _members(path: str, damage: list[str]) -> Iterator[ImagePlace]:
    """One location per sample of a shard; a sample is a run of files with the same key."""
    stamp, reasons = _stamp(path), list[str]()
    for key, members in groupby(shard_members(Path(path), reasons, "r:"), lambda member: member.key):
        files: dict[str, Member] = {member.suffix: member for member in members}
        image = next((files[suffix] for suffix in IMAGES if suffix in files), None)
        yield ImagePlace(_text(f"{path}/{key}"), path, stamp, (image.offset, image.size) if image else (0, 0))
    damage += [damage_line(Path(path), reason) for reason in reasons]


def _text(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def _stamp(path: str) -> str:
    """See `ImagePlace`; empty for a missing file."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def _no_images(source: str, damage: Sequence[str]) -> str:
    if damage:
        return f"{source} holds no images; {damage[0]}."
    prefix, _, rest = source.partition("/")
    if (prefix == "wds" and rest) or source.lower().endswith(SHARD):
        return f"{source} holds no images in .tar shards; an image is a file like 000001.jpg in one."
    shards = f" For its shards, write wds/{source}." if any(walk(source, (SHARD,), LeftOut())) else ""
    return f"{source} holds no images ({', '.join(IMAGE_SUFFIXES)}); name a folder that does.{shards}"
