"""The builder's progress, and how Ctrl-C reaches it."""
from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .library import BuilderLibrary


class BuildStep(NamedTuple):
    """The builder is at `step` of `steps` of the phase `phase`; `depth` 0 is the whole build."""

    phase: str
    depth: int
    step: int
    steps: int


StepCallback = Callable[[BuildStep], None]


def ignore_step(step: BuildStep) -> None:
    """Shows nothing."""


class Cancel:
    """Set by Ctrl-C while a build runs; the builder asks for it at each step."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def on_interrupt(self) -> Iterator[None]:
        """Ctrl-C only asks within the block, because an exception would pass through C++; the second one kills.

        Raises:
            KeyboardInterrupt: at the end of the block, when it was asked for.
        """
        if threading.current_thread() is not threading.main_thread():      # where signals cannot be handled
            yield
            return

        def ask(number: int, frame: Any) -> None:
            self.asked = True
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        if self.asked:
            raise KeyboardInterrupt


def progress_monitor(library: BuilderLibrary, watch: StepCallback, cancel: Cancel) -> Any:
    """A monitor that tells `watch` of every step and stops the build once `cancel` is asked for."""
    trt: Any = library.trt

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, tuple[int, int]] = {}                   # name: depth, steps

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            depth = self.phases[parent][0] + 1 if parent in self.phases else 0
            self.phases[phase] = depth, steps
            watch(BuildStep(phase, depth, 0, steps))

        def step_complete(self, phase: str, step: int) -> bool:
            depth, steps = self.phases.get(phase, (0, 1))
            watch(BuildStep(phase, depth, step + 1, steps))
            return not cancel.asked

        def phase_finish(self, phase: str) -> None:
            depth, steps = self.phases.pop(phase, (0, 1))
            watch(BuildStep(phase, depth, steps, steps))                   # the library may skip the last steps

    return Monitor()
