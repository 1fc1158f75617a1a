"""Names from outside are text: square brackets and :codes: in them are no markup of the terminal."""
import ast
import collections
import dataclasses
import importlib
import io
import re
import shutil
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from helpers import ROOT, dyvit, tiny_checkpoint, tiny_config
from rich.console import Console

from dyvit_deploy.artifacts.charts import bar_chart
from dyvit_deploy.cli import progress, terminal
from dyvit_deploy.config import ModelConfig, PruneConfig
from dyvit_deploy.engine.config import BatchProfile, BuildConfig
from dyvit_deploy.engine.monitor import BuildStep
from dyvit_deploy.engine.sidecar import EngineFacts
from dyvit_deploy.inspect.doctor import READY
from dyvit_deploy.report.status import FAIL
from dyvit_deploy.settings.fields import JsonConfig

PACKAGE = ROOT / "dyvit_deploy"
# Where a text cannot be any.
VALID = {Path: Path, ModelConfig: lambda name: tiny_config(name=name),
         PruneConfig: lambda _: PruneConfig.from_ratio(0.7, (1,)),
         EngineFacts: lambda name: EngineFacts(
             {"sha256": name, "bytes": 1}, {"format": "trt", "version": name}, BuildConfig(),
             {"system": name, "gpu": name, "compute_capability": name},
             (BatchProfile(1, 1, 1, name),), {name: ["float32", [None, 3]]}, {name: ["float32", [None]]},
             {name: "float32"}, {"file": name}, name)}
FIELDS = {"Backend.state": lambda _: READY, "SweepRow.run": lambda _: 0, "Artifact.rejected": lambda name: (name,),
          "Artifact.precision": lambda _: "int8", "Artifact.backend": lambda _: "onnx",
          "Artifact.file": lambda name: name.replace("/", ""),
          "Verdict.state": lambda _: FAIL, "Ranges.method": lambda _: "max",
          "SweepReport.runs": lambda name: ({"machine": {"processor": name, "logical_cores": 2}},)}
BRACKETS, CLOSING = "zzq[bold]x:cat:", "a[/b]"


def classes_with_tables():
    """Every class of the package that shows itself as a table."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        if "def table(self" in text:
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            for node in ast.parse(text).body:
                if isinstance(node, ast.ClassDef) and any(getattr(item, "name", "") == "table" for item in node.body):
                    found.append(getattr(module, node.name))
    return [cls for cls in found if not getattr(cls, "_is_protocol", False)]


def made(kind, name):
    """A value of a type, with `name` for every text in it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return made(next(a for a in arguments if a is not type(None)), name)
    if origin is typing.Literal:
        return arguments[0]
    if origin in (tuple, list, Sequence):
        items = arguments[:1] if arguments[-1] is Ellipsis or origin is not tuple else arguments
        return (list if origin is list else tuple)(made(item, name) for item in items)
    if origin in (dict, Mapping):
        # Some tables look up keys of their own.
        value = made(arguments[1], name)
        return collections.defaultdict(lambda: value, {made(arguments[0], name): value})
    if kind in (str, typing.Any):
        return name
    if kind in (int, float, bool):
        return kind(1)
    if kind in VALID:
        return VALID[kind](name)
    return made_of(kind, name)


def made_of(cls, name):
    hints = typing.get_type_hints(cls)
    if dataclasses.is_dataclass(cls):
        # Configs check their values, so those of them that have defaults keep them.
        fields = [field.name for field in dataclasses.fields(cls) if f"{cls.__name__}.{field.name}" in FIELDS
                  or not (issubclass(cls, JsonConfig) and field.default is not dataclasses.MISSING)]
    else:
        fields = list(cls._fields)
    valid = {field: FIELDS[key](name) for field in fields if (key := f"{cls.__name__}.{field}") in FIELDS}
    return cls(**{field: made(hints[field], name) for field in fields if field not in valid}, **valid)


def shown(renderable):
    """As a program shows it with a console of its own, which reads markup."""
    console = Console(file=io.StringIO(), width=5000)
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize("cls", classes_with_tables(), ids=lambda cls: cls.__name__)
def test_the_table_of_every_report_shows_names_as_they_are(cls):
    text = shown(made_of(cls, BRACKETS).table())
    assert BRACKETS in text and text.count("zzq") == text.count(BRACKETS)
    # A tag that closes nothing would be an error.
    assert CLOSING.rpartition("/")[2] in shown(made_of(cls, CLOSING).table())


def test_tables_are_made_by_the_class_without_markup():
    users = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")
             if re.search("rich.table|rich import .*table", path.read_text())]
    assert users == ["settings/tables.py"]


@pytest.fixture
def screen():
    """What the command line writes to a terminal, on standard output and error."""
    progress.console.cache_clear(), progress.errors.cache_clear()
    file = io.StringIO()
    for name in ("console", "errors"):
        console = getattr(progress, name)()
        console.file, console.is_interactive, console._force_terminal = file, True, True
        console._width, console._color_system = 300, None
    yield file
    progress.console.cache_clear(), progress.errors.cache_clear()


@pytest.mark.parametrize("name", [BRACKETS, CLOSING])
def test_steps_progress_bars_and_notes_show_names_as_they_are(screen, name):
    terminal.step(f"exporting {name}")
    assert list(progress.show_progress("ab", f"running {name}", 2)) == ["a", "b"]
    with progress.BuildBar() as bar:
        bar.update(BuildStep(f"phase {name}", 0, 1, 2))
    progress.console().print(f"printing {name}")
    written = screen.getvalue()
    assert all(f"{word} {name}" in written for word in ("exporting", "running", "phase", "printing"))


@pytest.mark.usefixtures("quick_export")
def test_commands_name_a_file_with_brackets_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = tiny_checkpoint(tmp_path)
    for name, command in (("run[bold]:cat:.safetensors", ("inspect",)),
                          ("a[/b].safetensors", ("export", "-o", "out.onnx"))):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(checkpoint, name)
        result = dyvit(*command, name)
        assert result.exit_code == 0 and name in result.output


@pytest.mark.parametrize("name", ["a$b$", "$\\frac$"])
def test_charts_show_dollars_as_they_are(tmp_path, name):
    pytest.importorskip("matplotlib")
    bar_chart(tmp_path / "chart.svg", [name, "b"], [1.0, 2.0], f"title {name}", "ms")
    assert (tmp_path / "chart.svg").stat().st_size


def test_control_characters_of_names_do_not_reach_the_terminal(tmp_path):
    """They would clear it, colour it, or write over what is there."""
    name = "a\x1b[31m\x9bb\r.safetensors"
    tiny_checkpoint(tmp_path).rename(tmp_path / name)
    shown = [dyvit("inspect", tmp_path / name), dyvit("inspect", tmp_path / name.upper())]
    assert [result.exit_code for result in shown] == [0, 1]
    for result in shown:
        assert "\\x1b[31" in result.output.lower() and not set(result.output) & set("\x1b\x9b\r")
