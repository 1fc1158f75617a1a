"""Lists the locations of unlabelled images in files, folders and shards, without reading the images.

Listing needs memory for the names of one folder only. An image's location is small enough to be sent to another
process, which then reads the image.
"""
from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..errors import DataError
from .folder import IMAGE_SUFFIXES
from .reading import decode
from .shards import IMAGES, Member, damage_line, no_image, shard_members

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
    """How many images `list_images` finds now.

    Raises:
        DataError: a source does not exist, or has no images.
    """
    total = 0
    for source in sources:
        damage: list[str] = []
        count = sum(1 for _ in _list_one(source, damage))
        if not count:
            raise DataError(_no_images(source, damage))
        total += count
    return total


def list_images(sources: Sequence[str], damage: list[str]) -> Iterator[ImagePlace]:
    """The images of `sources`, in the given order; folders are sorted by path, shards keep their own order.

    A source is an image file, a folder (with its subfolders), a .tar shard, or wds/FOLDER (all shards in the folder
    and its subfolders). For each shard that ends early, a line is appended to `damage`.
    """
    for source in sources:
        yield from _list_one(source, damage)


def _list_one(source: str, damage: list[str]) -> Iterator[ImagePlace]:
    prefix, _, rest = source.partition("/")
    if prefix == "hfds" and rest:
        raise DataError(f"{source} cannot be predicted; save its images to a folder or to shards first.")
    shards = prefix == "wds" and bool(rest)
    path = rest if shards else source
    if os.path.isdir(path):
        for entry in _walk(path, (SHARD,) if shards else IMAGE_SUFFIXES, ()):
            yield from _members(entry, damage) if shards else [ImagePlace(_text(entry), entry, _stamp(entry))]
    elif not os.path.isfile(path):
        raise DataError(f"{source!r} is neither an image, a folder nor a .tar shard; check the path.")
    elif path.lower().endswith(SHARD):
        yield from _members(path, damage)
    elif shards:
        raise DataError(f"{path} is not a .tar shard; wds/ takes shards, or a folder of them.")
    else:
        yield ImagePlace(_text(path), path, _stamp(path))


def _walk(folder: str, suffixes: Sequence[str] | set[str], ancestors: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Files with these suffixes in `folder` and its subfolders, sorted by path.

    Links are followed, except to one of the `ancestors`, (device, inode) each.
    """
    try:
        status = os.stat(folder)
        inode = (status.st_dev, status.st_ino)
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise _cannot_list(folder, error) from error
    if inode in ancestors:
        return
    for entry in entries:
        kind = _kind(entry, os.path.splitext(entry.name)[1].lower() in suffixes)
        if kind == "folder":
            yield from _walk(entry.path, suffixes, (*ancestors, inode))
        elif kind == "file":
            yield entry.path


def _kind(entry: os.DirEntry[str], has_suffix: bool) -> str:
    """"folder", "file" for a file that `has_suffix`, or "" for anything else.

    A broken, circular or forbidden link that `has_suffix` is a "file": reading it then reports its error.
    """
    try:
        return "folder" if entry.is_dir() else "file" if has_suffix and (entry.is_symlink() or entry.is_file()) else ""
    except OSError as error:
        # It may be a folder of images.
        if not has_suffix and error.errno != errno.ELOOP:
            raise _cannot_list(entry.path, error) from error
        return "file" if has_suffix else ""


def _cannot_list(folder: str, error: OSError) -> DataError:
    return DataError(f"{folder} cannot be listed ({error.strerror}); change its permissions.")


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
    shards = f" For its shards, write wds/{source}." if any(_walk(source, (SHARD,), ())) else ""
    return f"{source} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); name a folder that does.{shards}"
