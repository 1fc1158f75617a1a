"""The reports of exports and engine builds, and the callbacks that show their progress."""
from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from ..bench.report import Timing
from ..calibration.keep_layers import Drop
from ..data.images import Track, no_track
from ..engine.build import BuildReport
from ..engine.library import LIBRARY_SPECS
from ..engine.monitor import StepCallback, ignore_step
from ..export.onnx import ExportReport
from ..optional import installed
from ..parity.compare import ParityReport


class Progress(NamedTuple):
    """Callbacks for long work: `say` gets a line per step, `track` wraps loops, `watch` gets the steps of an engine
    builder."""

    say: Callable[[str], None] = lambda _: None
    track: Track[Any] = no_track
    watch: StepCallback = ignore_step


@dataclass(frozen=True)
class EngineReport:
    """An engine that was built from a graph, or refitted; true unless it differs from the graph on this machine's GPU.

    `on_device` is that comparison, None if there was none.
    """

    KIND: ClassVar[str] = "build"

    engine: BuildReport
    on_device: ParityReport | None = None
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        """How the engine differs from the graph."""
        return self.on_device.failures if self.on_device is not None else ()

    @property
    def path(self) -> str:
        """The file of the engine."""
        return self.engine.path

    @property
    def advice(self) -> tuple[str, ...]:
        """What a user can do about an engine that differs."""
        return () if self else (f"the rejected engine was written to {self.path}",
                                "build it again from this graph, without --refittable where weights need not change")

    def to_json(self) -> dict[str, Any]:
        return {"passed": bool(self), "failures": list(self.failures), **self.engine.to_json(),
                "on_device": None if self.on_device is None else dataclasses.asdict(self.on_device),
                "notes": list(self.notes)}

    def table(self) -> RenderableType:
        """The engine, and its comparison."""
        return Group(self.engine.table(), *([self.on_device.table()] if self.on_device is not None else []))


@dataclass(frozen=True)
class DeployReport:
    """The result of an export; true unless a comparison rejected the artifact.

    `products` counts convolutions and matrix products per precision; `kept` are those left in a higher precision than
    requested. `gate` is the comparison with the checkpoint, None with --no-gate. `drop` is None without --max-drop,
    `timing` if this machine cannot run the artifact as its target will. `blame` names the layers that cost a rejected
    artifact most. For an engine, `export` is the graph that it was built from, `engine` is the
    engine, and `on_device` its comparison with the checkpoint on this machine's GPU.
    """

    KIND: ClassVar[str] = "export"

    export: ExportReport
    products: dict[str, int]
    kept: tuple[str, ...] = ()
    gate: ParityReport | None = None
    drop: Drop | None = None
    timing: Timing | None = None
    blame: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    engine: BuildReport | None = None
    on_device: ParityReport | None = None

    def __bool__(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        """Why the artifact was rejected."""
        # Compared with None, because a report that failed is false.
        return tuple(failure for report in (self.gate, self.drop, self.on_device) if report is not None
                     for failure in report.failures)

    @property
    def path(self) -> str:
        """The file of the artifact."""
        return self.engine.path if self.engine else self.export.path

    @property
    def advice(self) -> tuple[str, ...]:
        """What a user can do about a rejected artifact."""
        if self:
            return ()
        written = f"the rejected artifact was written to {self.path}"
        if self.export.facts.precision == "float32" and self.on_device is None:
            return (written, "a float32 export should compute what the checkpoint computes: try it with --without all, "
                             "and report to us which model it is")
        return (written, *self.blame,
                "keep the costliest layers higher with --max-drop POINTS, calibrate on more images or with another "
                "--method, or take a higher precision")

    def next_step(self, checkpoint: str | Path) -> str:
        """The command to run after this export."""
        if not self and self.export.facts.precision == "float32":
            return f"dyvit check {shlex.quote(str(checkpoint))} {shlex.quote(self.path)} --data YOUR_IMAGES"
        if not self:
            counts, prune = self.export.facts.keep_counts, self.export.facts.prune
            keep = f" --keep-counts {','.join(map(str, counts))}" if counts else ""
            keep += f" --selector {prune.selector}" if prune and prune.selector != "prediction" else ""
            return (f"dyvit export {shlex.quote(str(checkpoint))}{keep} -o float32.onnx && dyvit sensitivity "
                    "float32.onnx --data YOUR_IMAGES")
        path = shlex.quote(self.path)
        if self.engine:
            return f"dyvit inspect {path}, and on the machine with the GPU: dyvit bench {path}"
        if (self.export.facts.lowered or {}).get("target") == "tensorrt":
            plan = shlex.quote(str(Path(self.path).with_suffix(".plan")))
            trt, rtx = LIBRARY_SPECS["trt"], LIBRARY_SPECS["rtx"]
            return (f"dyvit build {path} -o {plan}, on the machine with the GPU" if installed(trt.module)
                    else f"dyvit build {path} --format rtx -o {plan}{rtx.runs_on}; for others leave out --format on "
                         "the machine with the GPU")
        return f"dyvit check {shlex.quote(str(checkpoint))} {path} --data YOUR_IMAGES"

    def to_json(self) -> dict[str, Any]:
        compared = {name: None if report is None else report.to_json()
                    for name, report in (("gate", self.gate), ("on_device", self.on_device))}
        return {"passed": bool(self), "failures": list(self.failures), **dataclasses.asdict(self), **compared}

    def table(self) -> RenderableType:
        """The artifact, its comparison with the checkpoint, and one line each for precision, drop and speed."""
        shown = self.engine or self.export
        compared = [report for report in (self.gate, self.on_device) if report is not None]
        tables: list[RenderableType] = [shown.table(), *(report.table() for report in compared)]
        lines = [] if self.engine else [
            "matrix products: " + ", ".join(f"{count} in {name}" for name, count in self.products.items())]
        if self.kept:
            lines.append(f"kept in higher precision: {', '.join(self.kept)}")
        if self.drop:
            lines.append(f"{self.drop.loss} on {self.drop.basis} ({self.drop.allowed:g} allowed); "
                         f"{len(self.drop.kept)} layers kept for it")
        if self.timing and self.timing.speedup:
            lines.append(f"{self.timing.speedup:.2f}x the speed of float32 in ONNX Runtime (this machine, batch "
                         f"{self.timing.batch})")
        return Group(*tables, *(Text(line) for line in lines))
