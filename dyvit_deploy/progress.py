"""Progress on standard error, for the command line."""
from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    track as rich_track,
)

if TYPE_CHECKING:
    from .engine.monitor import BuildStep
    from .training.loop import EpochReport, Step

TABLE_WIDTH = 130                           # columns that every table fits in


@functools.cache
def console() -> Console:
    """Standard output; never so narrow that a table would lose digits."""
    return Console(width=max(Console().width, TABLE_WIDTH))


@functools.cache
def errors() -> Console:
    """Standard error."""
    return Console(stderr=True)


def track(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """`items` behind a progress bar that vanishes when it is done."""
    return rich_track(items, description, total, console=errors(), transient=True, disable=not errors().is_terminal)


class TrainingBar:
    """One bar per epoch with loss parts and kept ratios, one line per finished epoch."""

    def __init__(self, out: str) -> None:
        self._out = Path(out)
        self._progress = Progress(TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(),
                                  TimeRemainingColumn(), TextColumn("{task.fields[losses]}"), console=errors(),
                                  disable=not errors().is_terminal)
        self._task = self._progress.add_task("starting", total=None, losses="")

    def __enter__(self) -> TrainingBar:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._progress.stop()
        if kind is KeyboardInterrupt:
            finished = any(self._out.rglob("last.safetensors"))
            errors().print(f"Interrupted. Finished epochs are safe in {self._out}; add --resume to go on." if finished
                           else "Interrupted before the first epoch was finished; nothing was written.")

    def update(self, event: Step | EpochReport) -> None:
        """Shows one step or one finished epoch."""
        from .training.loop import EpochReport

        parts = (f"{name} {part:.3f}" for name, part in event.parts.items() if part)
        losses = " ".join((f"loss {event.loss:.3f}", *parts))
        if isinstance(event, EpochReport):
            self._progress.console.print(f"{event.phase} epoch {event.epoch}: top-1 {event.top1:.2%}, {losses}, "
                                         f"{event.seconds:.0f} s")
            return
        kept = " ".join(f"{share:.2f}" for share in event.kept)
        self._progress.update(
            self._task, completed=event.step, total=event.steps,
            description=f"{event.phase} epoch {event.epoch}/{event.epochs}",
            losses=losses + (f" kept {kept}" if kept else ""))


class BuildBar:
    """The builder's phases: one bar for the innermost that runs, which vanishes when the build is done."""

    def __init__(self) -> None:
        self._progress = Progress(TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(),
                                  TimeElapsedColumn(), TimeRemainingColumn(), console=errors(), transient=True,
                                  disable=not errors().is_terminal)
        self._task: Any = None
        self._phase = ""

    def __enter__(self) -> BuildBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._progress.stop()

    def update(self, step: BuildStep) -> None:
        """Shows one step of the builder."""
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("building", total=None)
        if step.phase != self._phase:
            self._phase = step.phase
            self._progress.reset(self._task, total=step.steps, description=step.phase.lower())
        self._progress.update(self._task, completed=step.step)
        if step.depth == 0 and step.step == step.steps:                    # other bars may follow
            self._progress.stop()
