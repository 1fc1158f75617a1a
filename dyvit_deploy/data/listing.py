"""Images one after another from files, folders and shards, without labels: only their places, nothing is read.

Listing takes as much memory as the names in one folder, and the place of an image is small enough to be sent to
another process, which then reads it.
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
    """Where an image lies.

    name: what it is called in results, valid text whatever the name on disk is.
    stamp: size and time of the file, or of the shard, which tell whether it has changed.
    part: offset and size of the image in a shard, (0, 0) for a sample without one; None is the whole file.
    """

    name: str
    path: str
    stamp: str
    part: tuple[int, int] | None = None

    def read(self) -> tuple[Image.Image, None]:
        """An RGB image, without a label, or one of UNREADABLE."""
        if self.part is None:
            return decode(self.path), None
        offset, size = self.part
        if not size:
            raise no_image()
        with open(self.path, "rb") as file:
            file.seek(offset)
            return decode(io.BytesIO(file.read(size))), None


def count_images(sources: Sequence[str]) -> int:
    """How many images `list_images` gives now.

    Raises:
        DataError: a source is not there, or has none.
    """
    total = 0
    for source in sources:
        damage: list[str] = []
        found = sum(1 for _ in _list_one(source, damage))
        if not found:
            raise DataError(_nothing(source, damage))
        total += found
    return total


def list_images(sources: Sequence[str], damage: list[str]) -> Iterator[ImagePlace]:
    """The images of `sources`, each source in the order of its paths, shards in their own order.

    A source is an image file, a folder (every image in it and below), a .tar shard, or wds/FOLDER (every shard in it
    and below). `damage` gets a line for each shard that ends early.
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
        raise DataError(f"{path} is no .tar shard; wds/ takes shards, or a folder of them.")
    else:
        yield ImagePlace(_text(path), path, _stamp(path))


def _walk(folder: str, suffixes: Sequence[str] | set[str], above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Files with these suffixes below `folder`, sorted by path; links are followed, into a folder `above` excepted."""
    try:
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise _unlisted(folder, error) from error
    if here in above:
        return
    for entry in entries:
        kind = _kind(entry, os.path.splitext(entry.name)[1].lower() in suffixes)
        if kind == "folder":
            yield from _walk(entry.path, suffixes, (*above, here))
        elif kind == "file":
            yield entry.path


def _kind(entry: os.DirEntry[str], wanted: bool) -> str:
    """"folder", "file" or nothing, by whether the name is `wanted`; a link to nowhere, in a circle or to what is
    forbidden is a file, to become a row with its error."""
    try:
        return "folder" if entry.is_dir() else "file" if wanted and (entry.is_symlink() or entry.is_file()) else ""
    except OSError as error:
        if not wanted and error.errno != errno.ELOOP:                      # it may be a folder of images
            raise _unlisted(entry.path, error) from error
        return "file" if wanted else ""


def _unlisted(folder: str, error: OSError) -> DataError:
    return DataError(f"{folder} cannot be listed ({error.strerror}); change its permissions.")


def _members(path: str, damage: list[str]) -> Iterator[ImagePlace]:
    """One place per sample of a shard; a sample is consecutive files of one key."""
    stamp, found = _stamp(path), list[str]()
    for key, members in groupby(shard_members(Path(path), found, "r:"), lambda member: member.key):
        files: dict[str, Member] = {member.suffix: member for member in members}
        image = next((files[suffix] for suffix in IMAGES if suffix in files), None)
        yield ImagePlace(_text(f"{path}/{key}"), path, stamp, (image.offset, image.size) if image else (0, 0))
    damage += [damage_line(Path(path), reason) for reason in found]


def _text(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def _stamp(path: str) -> str:
    """Empty for a file that is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def _nothing(source: str, damage: Sequence[str]) -> str:
    if damage:
        return f"{source} holds no images; {damage[0]}."
    prefix, _, rest = source.partition("/")
    if (prefix == "wds" and rest) or source.lower().endswith(SHARD):
        return f"{source} holds no images in .tar shards; an image is a file like 000001.jpg in one."
    shards = f" For its shards, write wds/{source}." if any(_walk(source, (SHARD,), ())) else ""
    return f"{source} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); name a folder that does.{shards}"
