"""Progress on standard error, for the command line."""
from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..machine.processes import is_first

if TYPE_CHECKING:
    from ..engine.monitor import BuildStep
    from ..training.report import Event, Started

# Seconds between lines where no bar is drawn.
QUIET = 60
# Columns that every table fits in.
TABLE_WIDTH = 130


@functools.cache
def console() -> Console:
    """Standard output; never so narrow that a table would lose digits. Names may have brackets, which are no markup."""
    return Console(width=max(Console().width, TABLE_WIDTH), markup=False, emoji=False)


@functools.cache
def errors() -> Console:
    """Standard error."""
    return Console(stderr=True, markup=False, emoji=False)


def show_progress(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """`items` behind a progress bar that vanishes when it is done."""
    with Progress(_plain("{task.description}"), BarColumn(), TaskProgressColumn(),
                  TimeRemainingColumn(elapsed_when_finished=True), console=errors(), transient=True,
                  disable=not errors().is_terminal or not is_first()) as progress:
        yield from progress.track(items, total, description=description)


def _plain(template: str) -> TextColumn:
    """A column of a progress bar, whose text may have brackets."""
    return TextColumn(template, markup=False)


class TrainingBar:
    """A bar per phase with loss parts, kept ratios, images/s and ETA, and a line per epoch.

    Where there is no terminal, a line a minute takes the bar's place; of several processes, the first one tells.
    """

    def __init__(self, out: str) -> None:
        self._out = Path(out)
        self._said = time.monotonic()
        self._progress = Progress(_plain("{task.description}"), BarColumn(20), MofNCompleteColumn(),
                                  TimeRemainingColumn(), _plain("{task.fields[losses]}"), console=errors(),
                                  disable=not errors().is_terminal or not is_first())
        self._task = self._progress.add_task("starting", total=None, losses="")

    def __enter__(self) -> TrainingBar:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._progress.stop()
        if kind is KeyboardInterrupt and is_first():
            saved = any(self._out.rglob("last.safetensors"))
            errors().print(f"Stopped. {self._out} holds the run so far; add --resume to go on." if saved
                           else "Stopped before anything was trained.", soft_wrap=True)

    def update(self, event: Event) -> None:
        """Shows the start of a phase, one step, or one finished epoch."""
        from ..training.report import EpochReport, Started

        if not is_first():
            return
        if isinstance(event, Started):
            self._progress.reset(self._task, total=event.recipe.epochs * event.steps,
                                 completed=event.epoch * event.steps + event.step)
            self._progress.console.print(_start_line(event), soft_wrap=True)
            return
        parts = (f"{name} {part:.3f}" for name, part in event.parts.items() if part)
        kept = " ".join(f"{share:.2f}" for share in event.kept)
        line = " ".join((f"loss {event.loss:.3f}", *parts, *([f"kept {kept}"] if kept else []),
                         f"{event.images_per_sec:.0f} images/s"))
        if isinstance(event, EpochReport):
            ema = "" if event.ema_top1 is None else f" (EMA {event.ema_top1:.2%})"
            self._progress.console.print(f"{event.phase} epoch {event.epoch}: top-1 {event.top1:.2%}{ema}, {line}, "
                                         f"{event.seconds:.0f} s", soft_wrap=True)
            return
        self._progress.update(self._task, completed=(event.epoch - 1) * event.steps + event.step,
                              description=f"{event.phase} epoch {event.epoch}/{event.epochs}", losses=line)
        if not errors().is_terminal and time.monotonic() - self._said > QUIET:
            self._said = time.monotonic()
            where = f"{event.phase} epoch {event.epoch}/{event.epochs}, step {event.step}/{event.steps}"
            errors().print(f"{where}: {line}", soft_wrap=True)


def _start_line(event: Started) -> str:
    recipe = event.recipe
    shared = f" on {event.processes} processes" if event.processes > 1 else ""
    where = f" from epoch {event.epoch + 1}, step {event.step + 1} on" if event.resumed else ""
    other = f"; it began with --data {event.other_data}" if event.other_data else ""
    return (f"{event.phase}: epochs {recipe.epochs}, each {event.steps} steps of {recipe.batch} images, peak learning "
            f"rate {recipe.peak_lr:.3g}{shared}{where}{other}")


class BuildBar:
    """The builder's phases: one bar for the innermost that runs, which vanishes when the build is done."""

    def __init__(self) -> None:
        self._progress = Progress(_plain("{task.description}"), BarColumn(20), MofNCompleteColumn(),
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
            self._task = self._progress.add_task("building", total=None)
        # Also for a second build: the first one ended with a stop.
        if not self._progress.live.is_started:
            self._progress.start()
        if step.phase != self._phase:
            self._phase = step.phase
            self._progress.reset(self._task, total=step.steps, description=step.phase.lower())
        self._progress.update(self._task, completed=step.step)
        # Other bars may follow.
        if step.depth == 0 and step.step == step.steps:
            self._progress.stop()
            self._phase = ""
