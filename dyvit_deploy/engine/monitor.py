"""Reports the builder's progress, and stops the build on Ctrl-C."""
from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .library import BuilderLibrary


class BuildStep(NamedTuple):
    """The builder has done `step` of the `steps` of a phase; phases nest, and `depth` 0 is the whole build."""

    phase: str
    depth: int
    step: int
    steps: int


StepCallback = Callable[[BuildStep], None]


def ignore_step(step: BuildStep) -> None:
    """A StepCallback that does nothing."""


class Cancel:
    """Requested by Ctrl-C while a build runs; the builder checks it at each step."""

    def __init__(self) -> None:
        self.requested = False

    @contextlib.contextmanager
    def on_interrupt(self) -> Iterator[None]:
        """Within the block, the first Ctrl-C only requests the end, because an exception would pass through C++; the
        second one ends the process.

        Raises:
            KeyboardInterrupt: at the end of the block, after a request.
        """
        # Python handles signals in the main thread only.
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request(number: int, frame: Any) -> None:
            self.requested = True
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        before = signal.signal(signal.SIGINT, request)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        if self.requested:
            raise KeyboardInterrupt


def progress_monitor(library: BuilderLibrary, watch: StepCallback, cancel: Cancel) -> Any:
    """A monitor that calls `watch` at every step and stops the build once `cancel` is requested."""
    trt: Any = library.trt

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            # Phase name: depth and number of steps.
            self.phases: dict[str, tuple[int, int]] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            depth = self.phases[parent][0] + 1 if parent in self.phases else 0
            self.phases[phase] = depth, steps
            watch(BuildStep(phase, depth, 0, steps))

        def step_complete(self, phase: str, step: int) -> bool:
            depth, steps = self.phases.get(phase, (0, 1))
            watch(BuildStep(phase, depth, step + 1, steps))
            return not cancel.requested

        def phase_finish(self, phase: str) -> None:
            depth, steps = self.phases.pop(phase, (0, 1))
            # The library may skip the last steps of a phase.
            watch(BuildStep(phase, depth, steps, steps))

    return Monitor()
