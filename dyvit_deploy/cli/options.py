"""Options of commands, made from the fields of the configs that the library takes."""
from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

from ..artifacts.files import check_target
from ..config import LoadConfig
from ..errors import ConfigError
from ..settings.fields import OPTIONS, FieldOptions, JsonConfig, Kind, Option, flags_of, kind_of, write_value
from ..training.recipe import FIELDS, values_of

F = TypeVar("F", bound=Callable[..., Any])


class Text(click.ParamType):  # type: ignore[type-arg]  # generic in recent click only
    """A text that a `Kind` reads."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.name = kind, kind.label

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.kind.read(value)
        except ValueError:
            self.fail(f"{value!r} is not {self.kind.noun}.", param, ctx)


@dataclass(frozen=True)
class ConfigOptions:
    """Decorates a command with the options of a config and of the configs in it; the command receives one as `name`.

    Fields `without` an option keep their defaults; `flags` renames options, and `required` ones must be given. `make`
    is called in place of `config`, with the values that were given.
    """

    config: type[Any]
    name: str
    without: Collection[str] = ()
    flags: Mapping[str, str] = field(default_factory=dict)
    required: Collection[str] = ()
    make: Callable[..., Any] | None = None

    def __call__(self, command: F) -> F:
        @functools.wraps(command)
        def gather(**params: Any) -> Any:
            values = self._pop_values(self.config, self.name, params)
            return command(**{self.name: (self.make or self.config)(**values)}, **params)

        decorated: F = with_options(gather, *self._options(self.config, self.name))
        return decorated

    def _fields(self, config: type[Any], prefix: str) -> Iterator[tuple[Field[Any], str, Any]]:
        """The fields that have options, the prefix of their parameters in click, and the `FieldOptions` or the class of
        a nested config."""
        for entry in dataclasses.fields(config):
            nested = type(entry.default) if isinstance(entry.default, JsonConfig) else None
            found = entry.metadata.get(OPTIONS, nested)
            if found and entry.name not in self.without:
                yield entry, f"{prefix}_{entry.name}", found

    def _options(self, config: type[Any], prefix: str) -> Iterator[Callable[[Any], Any]]:
        for entry, name, found in self._fields(config, prefix):
            if not isinstance(found, FieldOptions):
                yield from self._options(found, name)
                continue
            for number, option in enumerate(found.options):
                flags = (self.flags[entry.name],) if entry.name in self.flags else flags_of(entry, option)
                required = entry.name in self.required or entry.default is MISSING
                yield click.option(*flags, f"{name}_{number}", required=required, **_settings(entry, option))

    def _pop_values(self, config: type[Any], prefix: str, params: dict[str, Any]) -> dict[str, Any]:
        """The values that were given for fields of `config`, taken out of click's parameters.

        Raises:
            ConfigError: two switches of one field.
        """
        values: dict[str, Any] = {}
        for entry, name, found in self._fields(config, prefix):
            if not isinstance(found, FieldOptions):
                nested = found(**self._pop_values(found, name, params))
                if nested != entry.default:
                    values[entry.name] = nested
                continue
            typed = [(option, params.pop(f"{name}_{number}")) for number, option in enumerate(found.options)]
            typed = [(option, value) for option, value in typed if not (value is None or value is False or value == ())]
            if not typed:
                continue
            if found.write:
                items = [item for option, value in typed for item in (value if option.repeated else (value,))]
                values[entry.name] = tuple(items)
                continue
            flags = [f"--{found.rival}"] if found.rival in values else []
            flags += [flags_of(entry, option)[-1] for option, _ in typed]
            if len(flags) > 1:
                raise ConfigError(f"Give one of {', '.join(flags)}{found.hint}.")
            [(option, value)] = typed
            values[entry.name] = value if option.value is None else option.value
        return values


def _settings(entry: Field[Any], option: Option) -> dict[str, Any]:
    """What click needs to know. A default is shown unless it is empty or the help text names one itself."""
    if option.value is not None:
        return {"is_flag": True, "help": option.help}
    known = entry.default is not MISSING and entry.default and not option.repeated
    default = write_value(entry, option, entry.default) if known else None
    shown = default if "default" not in option.help else None
    kind, choices = kind_of(entry, option), entry.metadata[OPTIONS].choices
    return {"help": option.help.replace("{default}", str(default)).replace("{choices}", ", ".join(choices)),
            "type": _type(kind, option.least), "multiple": option.repeated,
            "metavar": option.metavar or (f"[{'|'.join(choices)}]" if choices and kind.label == "str" else None),
            # A default of None would count as one: a required option could then be left out.
            **({} if shown is None else {"default": shown, "show_default": True})}


def _type(kind: Kind, least: int | None) -> Any:
    """Click's own types for numbers and plain text, for their messages."""
    if kind.label == "int":
        return click.INT if least is None else click.IntRange(min=least)
    return {"float": click.FLOAT, "str": click.STRING}.get(kind.label) or Text(kind)


def recipe_options(command: F) -> F:
    """One option per value of the recipe; the command receives those that were given as `overrides`."""
    @functools.wraps(command)
    def gather(**values: Any) -> Any:
        given = {name: values.pop(name) for name in FIELDS}
        return command(overrides=tuple((n, v) for n, v in given.items() if v is not None), **values)

    decorated: F = with_options(gather, *(
        click.option(*flags_of(entry, option), name, metavar=kind_of(entry, option).label.upper(),
                     help=f"{option.help} {values_of(name)}")
        for name, entry in FIELDS.items() for option in entry.metadata[OPTIONS].options))
    return decorated


# How a checkpoint is opened, and how an artifact is opened to run it.
load_options = ConfigOptions(LoadConfig, "load", without=("engine", "precision"))
run_options = ConfigOptions(LoadConfig, "load", without=("cuda_graph", "streams", "precision"))


def with_options(command: Any, *options: Callable[[Any], Any]) -> Any:
    """`command` with click options, shown in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def writable(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuses, before the work, a JSON file that could not be written or that is named like a model."""
    if value is None:
        return None
    if Path(value).suffix.lower() != ".json" and (Path(value).is_file() or not Path(value).exists()):
        raise ConfigError(f"Reports and ranges are written as .json, not as {Path(value).name!r}.")
    return str(check_target(value))


def drawable(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuses a chart that could not be drawn, likewise."""
    if value is None:
        return None
    from ..artifacts.charts import check_chart
    return str(check_target(check_chart(value)))


json_option = click.option("--json", "json_file", callback=writable, help="Also write the report to this file.")
