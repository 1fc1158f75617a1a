"""What the page reads of each JSON report, with its types; a report may have more, see `settings.untrusted.typed`."""
from __future__ import annotations

from typing import Any, TypedDict

from ..evaluation.answers import Packed


class Stamp(TypedDict):
    """What `artifacts.reports` writes before each report."""

    report: str
    format: int
    command: str
    version: str
    files: dict[str, str]


class CheckBatch(TypedDict):
    batch: int
    images: int
    failures: tuple[str, ...]
    top1_agreement: float
    relative_error: float | None
    overlap: tuple[float, ...]
    overlap_forgiven: tuple[float, ...] | None


class _Check(TypedDict):
    candidate: str
    reference: str
    data: str
    batches: tuple[CheckBatch, ...]


class Check(_Check, total=False):
    pixel_failures: tuple[str, ...]
    independent: bool


class _Eval(TypedDict):
    artifact: str
    data: str
    images: int
    top1: float
    top5: float
    calibration_error: float
    failures: tuple[str, ...]


class Eval(_Eval, total=False):
    answers: Packed | None


class Timing(TypedDict):
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
    speedup: float | None


class BenchTiming(Timing):
    ceiling: float | None
    stand_in: bool
    ci95_ms: dict[str, tuple[float | None, float | None]] | None


class Machine(TypedDict):
    machine: dict[str, Any]
    versions: dict[str, Any]


class BenchConfig(TypedDict):
    baseline: str | None


class Bench(Machine):
    config: BenchConfig
    timings: tuple[BenchTiming, ...]
    notes: tuple[str, ...]


class Quickstart(TypedDict):
    commands: tuple[str, ...]
    checks: tuple[Check, ...]
    evals: tuple[Eval, ...]
    bench: Bench


class Export(TypedDict):
    gate: Check | None
    on_device: Check | None


class SweepRun(Machine):
    run: int


class SweepRow(Timing):
    run: int
    command: str


class Sweep(TypedDict):
    runs: tuple[SweepRun, ...]
    rows: tuple[SweepRow, ...]
