"""Which files are images, and where they are in a folder; the same for training, evaluation and prediction."""
from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from ..errors import DataError
from ..settings.notes import tell

# Pillow's name of each format that is decoded, and the suffixes of its files, the commonest first. Pillow's other
# formats are never tried, whatever a file is called: EPS, for one, is handed to Ghostscript, which runs its code.
FORMATS = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",), "BMP": (".bmp",), "TIFF": (".tif", ".tiff"),
           "GIF": (".gif",), "PPM": (".ppm", ".pgm", ".pbm")}
IMAGE_SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
# Suffixes that are counted one by one; further ones are counted together.
MOST_SUFFIXES = 10
OTHERS = "others"


@dataclass
class LeftOut:
    """What `walk` does not yield: the number of hidden files and folders, files by suffix, links back to a parent."""

    hidden: int = 0
    suffixes: Counter[str] = field(default_factory=Counter)
    loops: list[str] = field(default_factory=list)

    def add_file(self, suffix: str) -> None:
        known = suffix in self.suffixes or (len(self.suffixes) < MOST_SUFFIXES and suffix[1:].isalnum())
        self.suffixes[suffix if known else OTHERS] += 1

    def tell(self, folder: str) -> None:
        """Tells the user, with a sentence for each kind."""
        if self.hidden == 1:
            tell(f"1 hidden file or folder in {folder} was left out.")
        elif self.hidden:
            tell(f"{self.hidden} hidden files and folders in {folder} were left out.")
        if self.suffixes:
            counts = ", ".join(f"{count} {suffix}" for suffix, count in self.suffixes.most_common())
            tell(f"Files in {folder} without the suffix of an image were skipped: {counts}.")
        if self.loops:
            tell(f"Links in {folder} to a folder that contains them were not followed, {len(self.loops)} in all; the "
                 f"first: {self.loops[0]}.")


def walk(folder: str, suffixes: Collection[str], left_out: LeftOut,
         ancestors: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Files with these suffixes in `folder` and its subfolders, sorted by path; the rest is added to `left_out`.

    Names with a leading dot are left out. Links are followed, except to one of the `ancestors`, (device, inode) each.

    Raises:
        DataError: a folder cannot be listed.
    """
    try:
        status = os.stat(folder)
        inode = (status.st_dev, status.st_ino)
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise _cannot_list(folder, error) from error
    if inode in ancestors:
        left_out.loops.append(folder)
        return
    for entry in entries:
        if entry.name.startswith("."):
            left_out.hidden += 1
            continue
        suffix = os.path.splitext(entry.name)[1].lower()
        kind = _kind(entry, suffix in suffixes)
        if kind == "folder":
            yield from walk(entry.path, suffixes, left_out, (*ancestors, inode))
        elif kind == "file":
            yield entry.path
        else:
            left_out.add_file(suffix)


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
