"""Compares two saved runs of bench: what became faster, what slower, and what only looks so."""
from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ..artifacts import require_file
from ..errors import ConfigError, reason

KEY = ("artifact", "backend", "precision", "batch")


@dataclass(frozen=True)
class Change:
    """One artifact at one batch size in both runs. `ratio` is the median before over the median after, above 1 for
    faster; `verdict` is "same" when the 95 % intervals of the medians overlap, and "unknown" without them."""

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
    """Rows that both runs have; `notes` tell what differs besides."""

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
    """Two files of `dyvit bench --json`, row by row.

    Raises:
        ArtifactError: a file is missing.
        ConfigError: one is not a report of bench, or they have no row in common.
    """
    old, new = _read(before), _read(after)
    rows = {tuple(row[name] for name in KEY): row for row in old["timings"]}
    changes = tuple(_change(rows[key], row) for row in new["timings"]
                    if (key := tuple(row[name] for name in KEY)) in rows)
    if not changes:
        raise ConfigError(f"{before} and {after} have no artifact, precision and batch size in common; give the "
                          "artifacts the same names.")
    notes = [f"{what} differ: {old[part]} before, {new[part]} after."
             for part, what in (("machine", "Machines"), ("versions", "Versions")) if old[part] != new[part]]
    left = len(rows) + len(new["timings"]) - 2 * len(changes)
    notes += [f"{left} rows are in one of the two only."] if left else []
    notes.append("Machines drift between runs: what must be compared closely belongs in one run.")
    return Comparison(str(before), str(after), changes, tuple(notes))


def _read(path: str | Path) -> dict[str, Any]:
    """The report in `path`, with every field that a comparison reads."""
    path = require_file(path)
    try:
        report = json.loads(path.read_text())
        for row in report["timings"]:
            row["latency_ms_p50"] + 0.0, [row[name] for name in KEY]
        return {name: report[name] for name in ("timings", "machine", "versions")}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a report of dyvit bench ({reason(error)}); write one with --json.") from error


def _change(old: dict[str, Any], new: dict[str, Any]) -> Change:
    before, after = float(old["latency_ms_p50"]), float(new["latency_ms_p50"])
    intervals: list[Any] = [(row.get("ci95_ms") or {}).get("p50") or (None, None) for row in (old, new)]
    if None in (*intervals[0], *intervals[1]):
        verdict = "unknown"
    else:
        overlap = max(low for low, _ in intervals) <= min(high for _, high in intervals)
        verdict = "same" if overlap else "faster" if after < before else "SLOWER"
    return Change(new["artifact"], new["backend"], new["precision"], new["batch"], before, after, before / after,
                  verdict)
