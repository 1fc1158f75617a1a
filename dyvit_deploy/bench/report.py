"""Settings and results of bench: one row per artifact and batch size."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Group
from rich.text import Text

from ..settings.tables import Table
from .config import BenchConfig
from .profile import ProfileReport

GRAPH = {None: "", True: ", CUDA graph", False: ", CUDA graph failed"}


@dataclass(frozen=True)
class Timing:
    """One artifact at one batch size; its products are computed in `precision`. `stand_in` marks a dense backbone with
    random weights that was built as a baseline.

    Latencies are milliseconds for the whole batch, `ci95_ms` their 95 % confidence intervals ("p50", "p90", "p99");
    an end is None if there were too few runs. `images_per_sec` is the batch size over the median; it counts the
    `streams` batches that an engine runs at once.
    `peak_rss_mib`, `load_ms` and `first_ms` are from a separate process that loads the artifact and runs this batch
    (see `process.Start`), None if not measured. `gflops` are the operations per second of the matrix products at the
    median latency, at two operations a multiply-accumulate, and `peak_share` is `gflops` over the machine's measured
    peak in the same runtime and precision. `speedup` is `images_per_sec` over the baseline's, `ceiling` the ratio of
    their multiply-accumulates; both are None without a baseline. `speedup_rewritten` is `images_per_sec` over that of
    the dense model with the same rewrites, None where there is none.
    `gpu_ms_p50` are the medians of the phases on a GPU by its own events (`upload`, `compute`, `download`; one stream),
    and `tflops` are the operations per second during `compute`. Without a CUDA graph, `compute` includes gaps in which
    the GPU waits for the host's launches. `cuda_graph` is None unless one was requested, else whether the batch was
    replayed as one; `capture_error` is the reason if not.
    """

    artifact: str
    backend: str
    precision: str
    batch: int
    latency_ms_p50: float
    latency_ms_p90: float
    latency_ms_p99: float
    images_per_sec: float
    runs: int
    stable: bool
    peak_rss_mib: float | None
    gmacs: float | None
    speedup: float | None
    ceiling: float | None
    stand_in: bool = False
    streams: int = 1
    gpu_ms_p50: dict[str, float] | None = None
    tflops: float | None = None
    ci95_ms: dict[str, tuple[float | None, float | None]] | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    gflops: float | None = None
    peak_share: float | None = None
    cuda_graph: bool | None = None
    capture_error: str = ""
    speedup_rewritten: float | None = None


@dataclass(frozen=True)
class BenchReport:
    """All timings of one run, and the machine they were measured on.

    `gpu`, for runs on a GPU, has its clocks during the timing of each batch size, and the peak of its matrix products,
    measured in this run. `peaks` are GFLOP/s of the machine's matrix products per runtime and precision; `profiles`
    has one entry per artifact and batch size.
    """

    KIND: ClassVar[str] = "bench"

    timings: tuple[Timing, ...]
    machine: dict[str, Any]
    versions: dict[str, str]
    config: BenchConfig
    notes: tuple[str, ...]
    gpu: dict[str, Any] | None = None
    peaks: dict[str, float] = dataclasses.field(default_factory=dict)
    profiles: tuple[ProfileReport, ...] = ()

    def table(self) -> Group:
        """Speed, then the cost of a start and the profiles, if they were measured."""
        return Group(self._speed(), *([self._starts()] if any(t.load_ms for t in self.timings) else []),
                     *(profile.table() for profile in self.profiles))

    def _speed(self) -> Table:
        """One row per artifact and batch size; ~ marks medians that did not become stable in time."""
        parts = [self.machine["processor"], f"{self.machine['logical_cores']} cores", self.machine["gpu"],
                 self.config.cpus and f"on cores {', '.join(map(str, self.config.cpus))} only",
                 self.config.threads and f"{self.config.threads} threads"]
        table = Table(title=", ".join(str(part) for part in parts if part), title_justify="left")
        # With these widths the whole table fits into 130 columns.
        twins = any(t.speedup_rewritten for t in self.timings)
        table.add_column("artifact", overflow="fold", min_width=10 if self.peaks or twins else 22)
        table.add_column("precision")
        table.caption, table.caption_justify = self._baselines(twins), "left"
        for column in ("batch", "p50 ms", "±", "p90 ms", "p99 ms", "images/s", "GMACs", "speed-up",
                       *(["rewritten"] if twins else []), "ceiling"):
            table.add_column(column, justify="right", no_wrap=True)
        gpu = any(t.gpu_ms_p50 for t in self.timings)
        for column in ("of peak",) if self.peaks else ():
            table.add_column(column, justify="right", no_wrap=True)
        for column in ("GPU ms", "copies ms", "TFLOP/s") if gpu else ():
            table.add_column(column, justify="right", no_wrap=True)
        for t in self.timings:
            phases = t.gpu_ms_p50 or {}
            copies = phases["upload"] + phases["download"] if phases else None
            optional = [(t.gmacs, ".3f"), (t.speedup, ".2f"), *([(t.speedup_rewritten, ".2f")] if twins else []),
                        (t.ceiling, ".2f")]
            optional += [(t.peak_share, ".0%")] if self.peaks else []
            optional += [(phases.get("compute"), ".3f"), (copies, ".3f"), (t.tflops, ".1f")] if gpu else []
            table.add_row(Text(f"{t.artifact} ({t.backend}{GRAPH[t.cuda_graph]})"), t.precision, str(t.batch),
                          f"{'' if t.stable else '~'}{t.latency_ms_p50:.2f}", _width(t), f"{t.latency_ms_p90:.2f}",
                          f"{t.latency_ms_p99:.2f}", f"{t.images_per_sec:.1f}",
                          *("-" if value is None else format(value, form) for value, form in optional),
                          end_section=t is [u for u in self.timings if u.batch == t.batch][-1])
        return table

    def _baselines(self, twins: bool) -> str:
        """What the columns of ratios are relative to."""
        if not any(t.speedup for t in self.timings):
            return ""
        given = self.config.baseline
        lines = [f"speed-up: over {Path(given).name if given else 'the dense model as torch exports it'}"]
        lines += ["rewritten: over the dense model with the same rewrites"] * twins
        return "; ".join(lines)

    def _starts(self) -> Table:
        """The cost of a start in a fresh process."""
        table = Table(title="starting a process: open the artifact, answer the first batch", title_justify="left")
        table.add_column("artifact", overflow="fold")
        for column in ("batch", "load ms", "first ms", "peak MiB"):
            table.add_column(column, justify="right", no_wrap=True)
        for t in self.timings:
            figures = (t.load_ms, t.first_ms, t.peak_rss_mib)
            table.add_row(Text(f"{t.artifact} ({t.backend}, {t.precision})"), str(t.batch),
                          *("-" if value is None else f"{value:.0f}" for value in figures))
        return table

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        values["profiles"] = [profile.to_json() for profile in self.profiles]
        values["config"]["baseline"] = self.config.baseline and str(self.config.baseline)
        return values


def _width(timing: Timing) -> str:
    """The larger distance of the median from an end of its 95 % interval, as a share of the median."""
    low, high = (timing.ci95_ms or {}).get("p50") or (None, None)
    if low is None or high is None:
        return "-"
    return f"{max(timing.latency_ms_p50 - low, high - timing.latency_ms_p50) / timing.latency_ms_p50:.1%}"
