"""Files that name the classes of a model, or map class folders to the classes of a model."""
from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts.files import require_file
from ..errors import ConfigError, DataError
from ..settings.untrusted import parse_json

# The names of ImageNet-21k's classes take 0.5 MiB.
MOST_MIB = 8
# Unicode's categories of control characters, surrogates, and separators of lines and paragraphs.
UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}
# A line that begins with an id of WordNet, as the names of ImageNet's folders are.
WORDNET_LINE = re.compile(r"(n\d{8})(\s.*)?")
# FOLDER 207, or FOLDER,207.
MAP_LINE = re.compile(r"(.*?\S)\s*[,\s]\s*(\d+)")


def read_labels(path: str | Path, classes: int) -> tuple[str, ...]:
    """The names of a model's `classes`, in order; two classes may have the same name.

    The file has one name per line, or ImageNet's "n01440764 tench, Tinca tinca", or is JSON: a list of names, or an
    object from class number to name or to ImageNet's ["n01440764", "tench"].

    Raises:
        ArtifactError: the file does not exist or cannot be read.
        DataError: it has another form, another number of names, or a name with a control character.
    """
    content = _read(path)
    if isinstance(content, dict):
        content = _by_number(path, content)
    if isinstance(content, str):
        found: list[Any] = [line.strip() for line in content.rstrip().split("\n")]
        if all(WORDNET_LINE.fullmatch(line) for line in found):
            found = [" ".join(line.split()[1:]) or line for line in found]
    else:
        found = [item[1] if _is_wordnet_pair(item) else item for item in content]
    for number, name in enumerate(found):
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{path} has no name for class {number}; give one name per class, in the model's order.")
        if any(unicodedata.category(letter) in UNPRINTABLE for letter in name):
            raise DataError(f"The name of class {number} in {path}, {name!r}, has a control character; remove it.")
    if len(found) != classes:
        raise DataError(f"{path} has {len(found)} names, and the model has {classes} classes; give one name per class.")
    return tuple(found)


def read_class_map(path: str | Path, folders: Sequence[str]) -> NDArray[np.int64]:
    """The number of the model's class for each of `folders`, int64 [len(folders)].

    The file has lines like "FOLDER 207" or "FOLDER,207", or is JSON: {"FOLDER": 207}. For folders with WordNet ids,
    ImageNet's own files do: lines like "n01440764 tench" in the order of the classes, or {"0": ["n01440764",
    "tench"]}. Folders in the file that are not asked for are ignored.

    Raises:
        ArtifactError: the file does not exist or cannot be read.
        DataError: it has another form, or lacks one of `folders`.
    """
    content = _read(path)
    if isinstance(content, str):
        content = _lines_of_map(path, content)
    if not isinstance(content, dict):
        raise DataError(f"{path} is a JSON list; a class map is an object like {{\"FOLDER\": 207}}.")
    if content and all(_is_wordnet_pair(value) for value in content.values()):
        content = _without_doubles(path, [(value[0], number) for number, value in content.items()])
    missing = [name for name in folders if name not in content]
    if missing:
        raise DataError(f"{path} has no class for {len(missing)} of the {len(folders)} class folders; the first is "
                        f"{missing[0]!r}, add each of them.")
    return np.asarray([_class_number(path, name, content[name]) for name in folders], np.int64)


def _read(path: str | Path) -> str | list[Any] | dict[str, Any]:
    """The text of the file, or the content of a .json file."""
    file = require_file(path)
    if file.stat().st_size > MOST_MIB << 20:
        raise DataError(f"{path} is larger than {MOST_MIB} MiB, too large for a list of classes; check the file.")
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8; save it as UTF-8.") from error
    if file.suffix.lower() != ".json":
        return text
    try:
        content = parse_json(text, finite=False, pairs=_unique)
    except ConfigError as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); correct it, or name a text file .txt."
                        ) from error
    if not isinstance(content, (list, dict)):
        raise DataError(f"{path} is JSON, but neither a list nor an object; give one entry per class.")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary of `pairs`; raises ValueError where two of them contradict."""
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content and content[name] != value:
            raise ValueError(f"{name!r} occurs twice")
        content[name] = value
    return content


def _by_number(path: str | Path, content: dict[str, Any]) -> list[Any]:
    """The values of an object whose keys are the numbers 0 to N-1, in order."""
    keys = [key for key in content if key.isascii() and key.isdigit() and len(key) < 10]
    if sorted(map(int, keys)) != list(range(len(content))):
        raise DataError(f"The keys of {path} are not the class numbers 0 to {len(content) - 1}; write "
                        '{"0": "first name", "1": "second name", ...}.')
    return [content[key] for key in sorted(keys, key=int)]


def _lines_of_map(path: str | Path, text: str) -> dict[str, Any]:
    lines = [line.strip() for line in text.rstrip().split("\n")]
    found = [MAP_LINE.fullmatch(line) for line in lines]
    in_order = [WORDNET_LINE.fullmatch(line) for line in lines]
    if all(in_order) and not all(found):
        found, numbers = in_order, list(map(str, range(len(lines))))
    else:
        numbers = [match[2] if match else "" for match in found]
    if not all(found):
        raise DataError(f"Line {found.index(None) + 1} of {path} is not a class folder and a class number; write it "
                        "like FOLDER 207.")
    return _without_doubles(path, [(match[1], number) for match, number in zip(found, numbers) if match])


def _without_doubles(path: str | Path, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    try:
        return _unique(pairs)
    except ValueError as error:
        raise DataError(f"{path} contradicts itself: {error}; remove one of the lines.") from error


def _is_wordnet_pair(item: Any) -> bool:
    """True for ["n01440764", "tench"]."""
    return isinstance(item, list) and len(item) == 2 and bool(WORDNET_LINE.fullmatch(str(item[0])))


def _class_number(path: str | Path, folder: str, value: Any) -> int:
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit() and len(text) < 10):
        raise DataError(f"{path} gives {folder!r} the class {text[:40]!r}, which is not a class number; write a number "
                        "like 207.")
    return int(text)
