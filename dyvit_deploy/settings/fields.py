"""Fields of configs as options: help, flag, type and choices are written once, beside the field.

The options of the command line (`cli.options`) and the commands that reports print (`command_flags`) are made from
them, and `JsonConfig` checks choices and reads JSON.
"""
from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from ..errors import ConfigError, did_you_mean, shorten
from .untrusted import hints_of, typed

OPTIONS = "options"
# Short names that users may type, and the names that configs have.
ALIASES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": "float8"}
SHORT = {name: alias for alias, name in ALIASES.items()}

T = TypeVar("T", bound="JsonConfig")


# Keyword arguments, sorted by name; hashable, unlike a dictionary.
Arguments = tuple[tuple[str, "bool | int | float | str | tuple[int, ...] | None"], ...]


def as_arguments(values: Any) -> Arguments:
    """`values`, a mapping or pairs, as `Arguments`; lists, as JSON has them, become tuples."""
    return tuple(sorted((str(name), tuple(value) if isinstance(value, list) else value)
                        for name, value in dict(values).items()))


def numbers_text(values: Sequence[float]) -> str:
    """`0.485,0.456,0.406`, as options take it."""
    return ",".join(f"{value:g}" for value in values)


@dataclass(frozen=True)
class Kind:
    """A type of value as text. `label` is its placeholder in a help text, `noun` its name in an error message; `read`
    raises ValueError."""

    label: str
    noun: str
    read: Callable[[Any], Any]
    write: Callable[[Any], str] = str


def _list(label: str, noun: str, item: Callable[[str], Any]) -> Kind:
    return Kind(label, noun, lambda text: tuple(item(part) for part in text.split(",")), _joined(","))


def _joined(mark: str) -> Callable[[Any], str]:
    return lambda values: mark.join(map(str, values))


def _size(text: str) -> tuple[int, int]:
    """`384`, or `384x512` for height by width."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(text)
    return int(parts[0]), int(parts[-1])


def _range(value: Any) -> tuple[float, float]:
    """`0.5:0.9`, or a pair."""
    low, high = value.split(":") if isinstance(value, str) else value
    return float(low), float(high)


def _arguments(value: Any) -> tuple[tuple[str, Any], ...]:
    """`num_heads=12,global_pool=avg`, values as in Python, other words as text; 16x8 is a pair of numbers."""
    if not isinstance(value, str):
        return tuple(value)
    pairs = []
    for part in value.split(","):
        name, mark, text = part.partition("=")
        if not mark or not name.strip().isidentifier():
            raise ValueError(part)
        pairs.append((name.strip(), _argument(text.strip())))
    return tuple(pairs)


def _argument(text: str) -> Any:
    if sides := re.fullmatch(r"(\d+)x(\d+)", text):
        return int(sides[1]), int(sides[2])
    text = {"true": "True", "false": "False", "none": "None"}.get(text, text)
    try:
        value = ast.literal_eval(text) if len(text) < 100 else text
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, (bool, int, float, type(None))) else text


def _write_arguments(values: Any) -> str:
    return ",".join(f"{name}={'x'.join(map(str, value)) if isinstance(value, tuple) else value}"
                    for name, value in values)


# By the annotation of a field, without `| None`.
KINDS = {
    "int": Kind("int", "a whole number", int),
    "float": Kind("float", "a number", float, lambda value: str(value).removesuffix(".0")),
    "str": Kind("str", "a name", str),
    "str | Path": Kind("str", "a path", str),
    "tuple[int, ...]": _list("int,...", "a list of numbers like 1,2,3", int),
    "tuple[float, ...]": _list("float,...", "a list of numbers like 1,2,3", float),
    "tuple[str, ...]": _list("name,...", "a list of names", str),
    "tuple[int, int]": Kind("pixels", "a size like 384 or 384x512", _size, _joined("x")),
    "Arguments": Kind("name=value,...", "a list like num_heads=12,global_pool=avg", _arguments, _write_arguments),
    "tuple[float, float]": Kind("range", "a range like 0.5:0.9", _range, _joined(":")),
}


@dataclass(frozen=True)
class Option:
    """One option of the command line.

    `names` is empty for an option that is named like its field. A switch takes no text and sets the field to `value`.
    `kind` None is that of the field's type; `least` bounds a number from below. In `help`, `{default}` and `{choices}`
    stand for those of the field.
    """

    names: tuple[str, ...]
    help: str
    value: Any = None
    kind: Kind | None = None
    metavar: str | None = None
    least: int | None = None
    repeated: bool = False


@dataclass(frozen=True)
class FieldOptions:
    """The options that set one field: a single one, or one switch per value, of which one may be given.

    With `write`, which returns the words for a value, each option gives elements of a tuple. `choices` are spelled as
    users type them. `rival` is an earlier field that excludes the switches; `hint` ends the message about two of them.
    """

    options: tuple[Option, ...]
    choices: tuple[str, ...] = ()
    hint: str = ""
    rival: str = ""
    write: Callable[[Any], list[str]] | None = None


def option(default: Any, help: str, flag: str = "", metavar: str | None = None, choices: Sequence[str] = (),
           least: int | None = None) -> Any:
    """A field of a config with its option; a boolean becomes a switch to the opposite of its default.

    `flag` is "--name" or "-n --name", by default the name of the field.
    """
    value = not default if isinstance(default, bool) else None
    one = Option(tuple(flag.split()), help, value, None, metavar, least)
    return dataclasses.field(default=default, metadata={OPTIONS: FieldOptions((one,), tuple(choices))})


def switches(default: str, choices: Sequence[str], helps: Mapping[str, str], hint: str = "", rival: str = "") -> Any:
    """A field whose values, besides the default, are switches; `helps` has the help text of each flag."""
    values = {f"--{SHORT.get(choice, choice)}": choice for choice in choices}
    options = tuple(Option((flag,), help, values[flag]) for flag, help in helps.items())
    return dataclasses.field(default=default, metadata={OPTIONS: FieldOptions(options, tuple(choices), hint, rival)})


def flags_of(field: dataclasses.Field[Any], option: Option) -> tuple[str, ...]:
    """The names of an option."""
    return option.names or ("--" + field.name.replace("_", "-"),)


def kind_of(field: dataclasses.Field[Any], option: Option) -> Kind:
    """What the text of an option is."""
    return option.kind or KINDS[str(field.type).removesuffix(" | None")]


def write_value(field: dataclasses.Field[Any], option: Option, value: Any) -> str:
    """The text of an option that gives `value`."""
    choices = field.metadata[OPTIONS].choices
    if choices:
        typed = tuple(SHORT[name] if SHORT.get(name) in choices else name for name in _as_tuple(value))
        value = typed if isinstance(value, tuple) else typed[0]
    return kind_of(field, option).write(value)


def command_flags(config: Any, without: Collection[str] = ()) -> list[str]:
    """The words of the command line for all that `config` has otherwise than by default, nested configs included.

    `without` names fields to leave out, at any depth.
    """
    words: list[str] = []
    for field in dataclasses.fields(config):
        value, found = getattr(config, field.name), field.metadata.get(OPTIONS)
        if field.name in without or value is None or value == field.default:
            continue
        if found and found.write:
            words += found.write(value)
        elif found:
            for option in found.options:
                if option.value is None:
                    words += [flags_of(field, option)[-1], write_value(field, option, value)]
                elif option.value == value:
                    words += flags_of(field, option)
        elif isinstance(value, JsonConfig):
            words += command_flags(value, without)
    return words


def check_choice(noun: str, value: object, choices: Sequence[str]) -> None:
    """Raises ConfigError, with the closest of `choices`, unless `value` is one of them."""
    if value not in choices:
        raise ConfigError(f"Unknown {noun} {shorten(value)}.{did_you_mean(str(value), choices)}")


class JsonConfig:
    """Adds a JSON round trip and a check of choices to a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __post_init__(self) -> None:
        """Replaces aliases in fields that have choices.

        Raises:
            ConfigError: a value is none of the choices.
        """
        for field in dataclasses.fields(self):
            value, found = getattr(self, field.name), field.metadata.get(OPTIONS)
            if value is None or not found or not found.choices:
                continue
            noun = field.name.removesuffix("s") if isinstance(value, tuple) else field.name
            names = tuple(ALIASES.get(name, name) for name in _as_tuple(value))
            for name in names:
                check_choice(noun, name, [ALIASES.get(choice, choice) for choice in found.choices])
            object.__setattr__(self, field.name, names if isinstance(value, tuple) else names[0])

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
        """The reverse of `to_dict`; lists become tuples, and fields whose type is a config are made of mappings.

        Raises:
            ConfigError: a field is missing, unknown or of the wrong type, see `untrusted.typed`.
        """
        known = dataclasses.fields(cls)
        names = [field.name for field in known]
        for name in values:
            if name not in names:
                raise ConfigError(f"{cls.__name__} has no field {shorten(name)}.{did_you_mean(str(name), names)}")
        needed = [field.name for field in known
                  if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING]
        if missing := [name for name in needed if name not in values]:
            raise ConfigError(f"{cls.__name__} cannot be read: it lacks {', '.join(missing)}.")
        kind: Any = cls
        hints = hints_of(kind)
        return cls(**{name: typed(value, hints[name], f"{cls.__name__}.{name}") for name, value in values.items()})


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
