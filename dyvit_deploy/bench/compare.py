"""Compares two saved runs of bench: which rows became faster or slower, and which differences are only noise."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypedDict

from rich.text import Text

from ..artifacts.files import require_file
from ..errors import ArtifactError, ConfigError, reason
from ..settings.tables import Table
from ..settings.untrusted import read_json, typed

# Labels of `_Row.mode`, see `Timing`.
MODE_LABELS = ("CUDA graph", "Number of streams")
# Settings that do not affect the ratio of two rows.
IGNORED_SETTINGS = ("config batches", "config seconds", "config memory", "config profile", "config peak")


@dataclass(frozen=True)
class Change:
    """One artifact at one batch size in both runs.

    `ratio` is the median before over the median after, above 1 if it became faster. `verdict` is "faster", "SLOWER",
    "same" if the 95 % intervals of the medians overlap, or "unknown" without intervals.
    """

    artifact: str
    backend: str
    precision: str
    batch: int
    before_ms: float
    after_ms: float
    ratio: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """The rows that both runs have; `notes` list differences in machine, versions, settings and rows."""

    KIND: ClassVar[str] = "compare"

    before: str
    after: str
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    def table(self) -> Table:
        table = Table(title=Text(f"{self.before} -> {self.after}"), title_justify="left")
        for column in ("artifact", "precision", "batch", "before ms", "after ms", "before / after", "verdict"):
            table.add_column(column, justify="left" if column in ("artifact", "precision", "verdict") else "right")
        for change in self.changes:
            table.add_row(Text(f"{change.artifact} ({change.backend})"), change.precision, str(change.batch),
                          f"{change.before_ms:.2f}", f"{change.after_ms:.2f}", f"{change.ratio:.2f}", change.verdict)
        return table

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def compare_runs(before: str | Path, after: str | Path) -> Comparison:
    """Compares two files of `dyvit bench --json` row by row.

    Raises:
        ArtifactError: a file is missing, or is not a report of bench.
        ConfigError: they have no row in common.
    """
    (old, old_context), (new, new_context) = _read(before), _read(after)
    common = [key for key in new if key in old]
    if not common:
        raise ConfigError(f"{before} and {after} have no artifact, precision and batch size in common; give the "
                          "artifacts the same names.")
    notes = [f"{name} differs: {old_context.get(name)} before, {new_context.get(name)} after."
             for name in dict.fromkeys((*old_context, *new_context)) if old_context.get(name) != new_context.get(name)]
    notes += [f"{label} of {new[key].artifact} at batch {new[key].batch} differs: {old_mode} before, {new_mode} after."
              for key in common for label, old_mode, new_mode in zip(MODE_LABELS, old[key].mode, new[key].mode)
              if old_mode != new_mode]
    unmatched = len(old) + len(new) - 2 * len(common)
    notes += [f"Rows in one of the two only: {unmatched}."] if unmatched else []
    notes.append("Machines drift between runs: what must be compared closely belongs in one run.")
    return Comparison(str(before), str(after), tuple(_change(old[key], new[key]) for key in common), tuple(notes))


class _TimingStart(TypedDict):
    artifact: str
    backend: str
    precision: str
    batch: int
    latency_ms_p50: float


class TimingFile(_TimingStart, total=False):
    """What is read of a timing in a report of bench."""

    ci95_ms: dict[str, tuple[float | None, float | None] | None] | None
    cuda_graph: bool | None
    streams: int


class BenchFile(TypedDict):
    """What is read of a report of bench."""

    timings: tuple[TimingFile, ...]
    machine: dict[str, Any]
    versions: dict[str, Any]
    config: dict[str, Any]


class _Row(NamedTuple):
    artifact: str
    backend: str
    precision: str
    batch: int
    ms: float
    interval: tuple[float, float] | None
    mode: tuple[Any, ...]


def _read(path: str | Path) -> tuple[dict[tuple[Any, ...], _Row], dict[str, Any]]:
    """The rows of the report in `path`, and its context: machine, versions and settings."""
    path = require_file(path)
    try:
        report = typed(read_json(path), BenchFile, path.name)
        rows = {row[:4]: row for row in map(_row, report["timings"])}
        duplicates = len(rows) < len(report["timings"])
        context = {f"{section} {name}": value for section in ("machine", "versions", "config")
                   for name, value in report[section].items() if f"{section} {name}" not in IGNORED_SETTINGS}
    except ConfigError as error:
        raise ArtifactError(f"{path} is not a whole report of dyvit bench ({reason(error)}); write one with --json."
                            ) from error
    if duplicates:
        raise ArtifactError(f"{path} has two artifacts of one name; give them different ones and measure again.")
    return rows, context


def _row(values: dict[str, Any]) -> _Row:
    low, high = (values.get("ci95_ms") or {}).get("p50") or (None, None)
    ms = float(values["latency_ms_p50"])
    if not 1e-12 < ms < 1e12:
        raise ConfigError(f"a latency is {ms} ms")
    return _Row(values["artifact"], values["backend"], values["precision"], values["batch"], ms,
                None if low is None or high is None else (float(low), float(high)),
                (values.get("cuda_graph"), values.get("streams", 1)))


def _change(old: _Row, new: _Row) -> Change:
    if old.interval is None or new.interval is None:
        verdict = "unknown"
    elif max(old.interval[0], new.interval[0]) <= min(old.interval[1], new.interval[1]):
        verdict = "same"
    else:
        verdict = "faster" if new.ms < old.ms else "SLOWER"
    return Change(*new[:4], old.ms, new.ms, old.ms / new.ms, verdict)
