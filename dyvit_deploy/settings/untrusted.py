"""The check of JSON, TOML and YAML that come from files: first their size, then their values, then their types.

Whoever reads such a file calls `parse_json` or `read_json`, then `JsonConfig.from_dict` or `typed`. Each raises a
ConfigError, whose message the caller completes with the name of the file and what to do.
"""
from __future__ import annotations

import functools
import json
import math
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union

from ..errors import ArtifactError, ConfigError, reason, shorten

# Bytes; the largest that dyvit writes, the facts of an engine, have a few MiB.
MOST_BYTES = 16 << 20
# Values of a file, levels of nesting, characters of a name and of any text.
MOST_VALUES = 1_000_000
DEEPEST = 32
LONGEST_NAME = 4096
LONGEST_TEXT = 1 << 20
# TensorRT, ONNX and C++ count in signed 64 bit.
LARGEST_WHOLE = 2**63 - 1
NOUNS: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path",
                         type(None): "null"}


def read_json(path: Path, **limits: Any) -> Any:
    """The JSON in the file `path`; see `parse_json`.

    Raises:
        ArtifactError: the file cannot be opened.
        ConfigError: its content is not accepted.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be opened ({error.strerror or error}); check its permissions.") from error
    return parse_json(content, **limits)


def parse_json(text: str | bytes, finite: bool = True,
               pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text, UTF-8 if it is bytes.

    Args:
        finite: also refuse NaN, infinity, and whole numbers of more than 64 bit; JSON of other tools may have them.
        pairs: makes an object of its pairs, see `json.loads`; raises ValueError.

    Raises:
        ConfigError: it is not JSON, or above one of the limits of this module.
    """
    if len(text) > MOST_BYTES:
        raise ConfigError(f"it has more than {MOST_BYTES >> 20} MiB")
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        # Before parsing, because a million values take 100 MiB.
        if text.count(",") + text.count("[") + text.count("{") > MOST_VALUES:
            raise ValueError(f"it has more than {MOST_VALUES:,} values")
        value = json.loads(text, object_pairs_hook=pairs)
    except RecursionError as error:
        raise ConfigError(f"it is nested deeper than {DEEPEST} levels") from error
    except ValueError as error:
        raise ConfigError(reason(error)) from error
    check_values(value, finite)
    return value


def check_values(value: Any, finite: bool = True) -> None:
    """Checks plain data: numbers, text, and the nesting and number of lists and mappings.

    Raises:
        ConfigError: a value is above one of the limits of this module, or is text that is not Unicode.
    """
    waiting: list[tuple[Any, int]] = [(value, 0)]
    seen = 0
    while waiting:
        item, depth = waiting.pop()
        seen += 1
        if isinstance(item, str):
            check_text(item)
        elif isinstance(item, int):
            if finite and abs(item) > LARGEST_WHOLE:
                raise ConfigError("a whole number has more than 64 bit")
        elif isinstance(item, float):
            if finite and not math.isfinite(item):
                raise ConfigError(f"a number is {item}")
        elif isinstance(item, (Mapping, list, tuple)):
            if depth == DEEPEST:
                raise ConfigError(f"it is nested deeper than {DEEPEST} levels")
            if seen + len(waiting) + len(item) > MOST_VALUES:
                raise ConfigError(f"it has more than {MOST_VALUES:,} values")
            for key in item if isinstance(item, Mapping) else ():
                check_text(str(key), LONGEST_NAME)
            inner = item.values() if isinstance(item, Mapping) else item
            waiting += [(child, depth + 1) for child in inner]


def check_text(text: str, longest: int = LONGEST_TEXT) -> None:
    """Raises ConfigError if `text` has more than `longest` characters, or is not Unicode."""
    if len(text) > longest:
        raise ConfigError(f"a text of {len(text):,} characters is longer than {longest:,}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"the text {shorten(text)} is not Unicode (it has half of a surrogate pair)") from error


def check_name(text: str, noun: str) -> None:
    """Raises ConfigError unless `text` is printable and short enough for the name of a file."""
    if not text or len(text) > 200 or not text.isprintable():
        raise ConfigError(f"The {noun} {shorten(text)} must have 1 to 200 printable characters.")


@functools.cache
def hints_of(kind: Any) -> dict[str, Any]:
    """The types of the fields of a dataclass or TypedDict."""
    return typing.get_type_hints(kind, include_extras=True)


def typed(value: Any, hint: Any, where: str) -> Any:
    """`value`, plain data, as the type `hint` has it: lists become tuples, and mappings the configs that `hint` names.

    What is inside of a dictionary is checked and stays plain data. A TypedDict may have further keys.

    Args:
        hint: Any, a scalar, `X | None`, a tuple, list or dict with types, a class with `from_dict`, or a TypedDict,
            which type checkers see as a plain dictionary where it is written `Annotated[dict[str, Any], X]`.
        where: the name of the value in messages.

    Raises:
        ConfigError: it has another type.
    """
    origin = typing.get_origin(hint) or hint
    if hint is Any:
        return value
    if origin is Annotated:
        return typed(value, hint.__metadata__[0], where)
    if origin in (Union, types.UnionType):
        return _of_union(value, typing.get_args(hint), where)
    if typing.is_typeddict(hint):
        return _of_typed_dict(value, hint, where)
    if hasattr(hint, "from_dict"):
        if not isinstance(value, (Mapping, hint)):
            raise _refused(where, "an object", value)
        return hint.from_dict(value) if isinstance(value, Mapping) else value
    if origin in (tuple, list, Sequence):
        return _of_list(value, origin, typing.get_args(hint), where)
    if origin in (dict, Mapping):
        return _of_dict(value, typing.get_args(hint), where)
    return _of_scalar(value, hint, where)


def _of_scalar(value: Any, hint: Any, where: str) -> Any:
    accepted = {float: (int, float), Path: (str, os.PathLike)}.get(hint, hint)
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise _refused(where, NOUNS.get(hint, hint.__name__), value)
    if isinstance(value, float) and not math.isfinite(value):
        raise _refused(where, "a finite number", value)
    return value


def _of_union(value: Any, hints: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in hints:
        return None
    choices = [hint for hint in hints if hint is not type(None)]
    if len(choices) == 1:
        return typed(value, choices[0], where)
    for hint in choices:
        try:
            return typed(value, hint, where)
        except ConfigError:
            continue
    raise _refused(where, " or ".join(dict.fromkeys(NOUNS.get(hint, "a list") for hint in choices)), value)


def _of_list(value: Any, origin: Any, hints: tuple[Any, ...], where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _refused(where, "a list", value)
    repeated = origin is not tuple or hints[1:] == (...,)
    if not repeated and len(value) != len(hints):
        raise _refused(where, f"a list of {len(hints)}", value)
    found = [typed(item, hint, f"{where}[{number}]")
             for number, (item, hint) in enumerate(zip(value, [hints[0]] * len(value) if repeated else hints))]
    return tuple(found) if origin is tuple else found


def _of_dict(value: Any, hints: tuple[Any, ...], where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _refused(where, "an object", value)
    return {typed(key, str, f"a name in {where}"): _plain_unless_config(item, hints[1], f"{where}[{shorten(key)}]")
            for key, item in value.items()}


def _of_typed_dict(value: Any, hint: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _refused(where, "an object", value)
    if missing := sorted(hint.__required_keys__ - value.keys()):
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    return dict(value) | {name: _plain_unless_config(value[name], kind, f"{where}.{name}")
                          for name, kind in hints_of(hint).items() if name in value}


def _plain_unless_config(value: Any, hint: Any, where: str) -> Any:
    """`value`, checked; lists stay lists, because dictionaries are compared with what was written."""
    found = typed(value, hint, where)
    return found if hasattr(type(found), "from_dict") else value


def _refused(where: str, noun: str, value: Any) -> ConfigError:
    return ConfigError(f"{where} must be {noun}, not {shorten(value)}")
