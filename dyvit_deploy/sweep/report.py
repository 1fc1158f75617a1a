"""The report of a sweep: one row per artifact and batch size, rejected artifacts, skipped combinations."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from ..settings.tables import Table
from .grid import SweepConfig, short
from .store import Artifact, machine_name
from .target import LATENCY, Recommendation, SweepRow, Target, choose, pareto_front, quality_of

REJECTED = "differs too much from float32"


class Skipped(NamedTuple):
    """A combination that was not measured, and the reason."""

    keep_ratio: float
    precision: str
    backend: str
    reason: str


@dataclass(frozen=True)
class SweepReport:
    """The result of a sweep; true if something was timed, and some row meets the targets, if there are any.

    `rows` belong to the grid of this call, but may have been measured earlier; `runs` have the time, machine and
    versions of each run, by the number in `SweepRow.run`. `rejected` artifacts differ too much from float32: they are
    neither timed nor recommended. `quality` is the metric that ranks the rows.
    """

    KIND: ClassVar[str] = "sweep"

    checkpoint: str
    folder: str
    config: SweepConfig
    rows: tuple[SweepRow, ...]
    rejected: tuple[Artifact, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    runs: tuple[dict[str, Any], ...] = ()
    charts: tuple[str, ...] = ()
    answer: Recommendation | None = None

    def __bool__(self) -> bool:
        return bool(self.rows) and (self.answer is None or bool(self.answer))

    @property
    def quality(self) -> str:
        return quality_of(self.rows)

    def images_of(self, metric: str) -> str:
        """The number of images that `metric` is a share of, or their range, as text; empty for other metrics."""
        counts = {images for row in self.rows if (images := row.images_of(metric)) is not None}
        return " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)})) + " images" if counts else ""

    @property
    def basis(self) -> str:
        """The numbers of images behind the shares."""
        known = {name: self.images_of(name) for name in (self.quality, "agreement")}
        return "; ".join(f"{name.replace('_', ' ')} on {images}" for name, images in known.items() if images)

    @property
    def machines(self) -> tuple[str, ...]:
        """Processor and cores of every machine that a row was measured on."""
        return tuple(dict.fromkeys(machine_name(run["machine"]) for run in self.runs))

    @property
    def failures(self) -> tuple[str, ...]:
        """Why the report is false."""
        if not self.rows:
            return (f"every artifact {REJECTED}",)
        return () if self.answer is None or self.answer else (self.answer.sentence,)

    @property
    def advice(self) -> tuple[str, ...]:
        """The best artifact for the targets, and the command that makes it."""
        return (self.answer.sentence, self.answer.best.command) if self.answer and self.answer.best else ()

    def aimed_at(self, targets: Sequence[Target]) -> SweepReport:
        """The same report with the best artifact for `targets`; unchanged without targets."""
        return dataclasses.replace(self, answer=choose(self.rows, targets)) if targets else self

    def front(self, batch: int) -> list[SweepRow]:
        """The rows of that batch size that no other beats in both latency and quality, by rising latency."""
        rows = [row for row in self.rows if row.batch == batch]
        return [rows[i] for i in pareto_front([(getattr(r, LATENCY), getattr(r, self.quality)) for r in rows])]

    def left_out(self) -> list[str]:
        """One line per reason for skipping, with the combinations that it applies to."""
        groups: dict[tuple[str, str], list[Skipped]] = {}
        for skipped in self.skipped:
            groups.setdefault((skipped.backend, skipped.reason), []).append(skipped)
        lines = []
        for (backend, reason), group in groups.items():
            precisions = dict.fromkeys(short(skipped.precision) for skipped in group)
            ratios = dict.fromkeys(f"{skipped.keep_ratio:g}" for skipped in group)
            where = "" if len(ratios) == len(self.config.keep_ratios) else f" at keep ratio {', '.join(ratios)}"
            lines.append(f"Left out {', '.join(precisions)} in {backend}{where}: {reason}")
        return lines

    def table(self) -> RenderableType:
        """One row per artifact and batch size; * marks the Pareto front, ~ medians that did not become stable in time.

        If there are several runs, a column has the number of the run.
        """
        data = f"on {self.config.data}" if self.config.data else "on noise"
        table = Table(title=Text("; ".join((f"{Path(self.checkpoint).name} {data}", *self.machines))),
                      title_justify="left", caption=Text(self.basis), caption_justify="left")
        table.add_column("artifact", overflow="fold")
        several = len(self.runs) > 1
        dense = any(row.dense_agreement is not None for row in self.rows)
        for column in ("batch", "as dense" if dense else "top-1", "agreement", "overlap", "p50 ms", "p99 ms",
                       "images/s", "speed-up", "MiB", "front", *(["run"] if several else [])):
            table.add_column(column, justify="right", no_wrap=True)

        def shares(measured: SweepRow | Artifact) -> list[str]:
            values = [measured.dense_agreement if dense else measured.top1, measured.agreement, measured.overlap]
            return ["-" if value is None else f"{value:.2%}" for value in values]

        for row in self.rows:
            table.add_row(Text(Path(row.artifact).name), str(row.batch), *shares(row),
                          f"{'' if row.stable else '~'}{row.latency_ms_p50:.2f}", f"{row.latency_ms_p99:.2f}",
                          f"{row.images_per_sec:.1f}",
                          "-" if row.speedup is None else f"{row.speedup:.2f}", f"{row.size_mib:.1f}",
                          "*" if row.pareto else "", *([str(row.run)] if several else []),
                          end_section=row is [r for r in self.rows if r.batch == row.batch][-1])
        for artifact in self.rejected:
            table.add_row(Text(artifact.file), "-", *shares(artifact), "-", "-", "-", "-",
                          f"{artifact.size_mib:.1f}", Text("rejected", "red"))
        lines = [Text(f"{artifact.file} {REJECTED}: {artifact.rejected[0]}") for artifact in self.rejected]
        return Group(table, *lines)

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        values["skipped"] = [skipped._asdict() for skipped in self.skipped]
        values |= {"passed": bool(self), "failures": list(self.failures), "quality": self.quality}
        return values


def with_front(report: SweepReport) -> SweepReport:
    """`report` with the rows of the Pareto fronts marked."""
    fronts = {(row.artifact, row.batch) for batch in report.config.batches for row in report.front(batch)}
    rows = tuple(dataclasses.replace(row, pareto=(row.artifact, row.batch) in fronts) for row in report.rows)
    return dataclasses.replace(report, rows=rows)
