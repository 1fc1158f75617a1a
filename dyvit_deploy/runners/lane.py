"""One stream of a GPU and its buffers for one input shape: copies, launches, graph capture, times by events."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import reason
from .base import InputSpec
from .cuda import Cuda

WARM_UP = 3                                 # launches before a capture: libraries allocate in the first ones


class Program(Protocol):
    """What a lane launches: the execution context of an engine, or a PyTorch model.

    `input_dtype` is that of the input on the GPU, which an upload converts to; None: that of the host's.
    """

    @property
    def input_dtype(self) -> str | None: ...

    def prepare(self, shape: tuple[int, ...], stream: Any) -> Sequence[InputSpec]:
        """Gets ready for inputs of `shape`; the outputs, with their shapes.

        Raises:
            RuntimeError: it does not take them.
        """

    def bind(self, tensors: Mapping[str, Any]) -> None:
        """Reads its input from, and writes its outputs to these tensors on the GPU, by name."""

    def enqueue(self, stream: Any) -> None:
        """Starts one batch on `stream` and does not wait for it."""


class Lane:
    """One program on one stream. `captured` says whether it is replayed as a CUDA graph, and `capture_error` why not
    where that was asked for."""

    def __init__(self, program: Program, cuda: Cuda) -> None:
        self.program, self._cuda = program, cuda
        self.stream = cuda.stream()
        self.shape: tuple[int, ...] | None = None
        self._replay: Callable[[], None] | None = None
        self.captured, self.capture_error = False, ""

    def prepare(self, shape: tuple[int, ...], source: InputSpec, graph: bool) -> None:
        """Buffers for `shape`, the first run, in which libraries compile and allocate, and the capture of a `graph`.

        Raises:
            RuntimeError: the program does not take the shape, or failed; the GPU's memory does not suffice.
        """
        cuda = self._cuda
        # A graph may still be running, and the weights of a model be on their way, on another stream.
        cuda.synchronize()
        # Half-prepared until the end.
        self.shape, self._replay, self.captured, self.capture_error = None, None, False, ""
        outputs = self.program.prepare(shape, self.stream)
        # Memory and zeros are ordered by stream.
        with cuda.within(self.stream):
            on_device = cuda.on_device(shape, self.program.input_dtype or source.dtype)
            self._source = cuda.pinned(shape, source.dtype), on_device
            self._results: dict[str, tuple[Any, Any]] = {}
            for spec in outputs:
                sides = tuple(side or 1 for side in spec.shape)
                self._results[spec.name] = cuda.pinned(sides, spec.dtype), cuda.on_device(sides, spec.dtype)
            on_device.zero_()
        self.program.bind({source.name: on_device} | {name: pair[1] for name, pair in self._results.items()})
        for _ in range(WARM_UP if graph else 1):
            self.launch()
        self.stream.synchronize()
        if graph:
            self._capture()
        self.shape = shape

    def _capture(self) -> None:
        """Takes the program as a CUDA graph where that can be done, as trtexec and Triton do."""
        try:
            self._replay = self._cuda.capture(self._enqueue, self.stream)
            self.captured = True
        except self._cuda.out_of_memory():
            raise
        except RuntimeError as error:
            self.capture_error = reason(_cause(error))
            self.launch()
            self.stream.synchronize()

    def _enqueue(self) -> None:
        self.program.enqueue(self.stream)

    def launch(self) -> None:
        """Starts one batch and does not wait for it."""
        if self._replay is None:
            self._enqueue()
        else:
            with self._cuda.within(self.stream):
                self._replay()

    def upload(self, feed: NDArray[Any]) -> None:
        """Starts to copy `feed` to the GPU."""
        self._stage(feed)
        self._start_upload()

    def _stage(self, feed: NDArray[Any]) -> None:
        """Puts `feed` into the host buffer, once the last copy has left it."""
        self.stream.synchronize()
        self._source[0].numpy()[...] = feed

    def _start_upload(self) -> None:
        host, device = self._source
        with self._cuda.within(self.stream):
            if host.dtype != device.dtype:                                 # converting on the host would take longer
                host = host.to(device.device, non_blocking=True)
            device.copy_(host, non_blocking=True)

    def download(self, names: Sequence[str]) -> list[NDArray[Any]]:
        """Waits for the batch and gives the outputs, as copies."""
        self._start_download(names)
        self.stream.synchronize()
        return [np.array(self._results[name][0].numpy()) for name in names]

    def _start_download(self, names: Sequence[str]) -> None:
        with self._cuda.within(self.stream):
            for name in names:
                host, device = self._results[name]
                host.copy_(device, non_blocking=True)

    def timed(self, names: Sequence[str], feed: NDArray[Any], runs: int) -> dict[str, list[float]]:
        """Milliseconds of `runs` batches by events on the GPU: `upload`, `compute`, `download`.

        `compute` of a captured graph is the GPU's own time; without one it includes gaps in which the GPU waits for
        the host to launch.
        """
        found: dict[str, list[float]] = {"upload": [], "compute": [], "download": []}
        self._stage(feed)
        for _ in range(runs):
            events = [self._cuda.event() for _ in range(4)]
            events[0].record(self.stream)
            self._start_upload()
            events[1].record(self.stream)
            self.launch()
            events[2].record(self.stream)
            self._start_download(names)
            events[3].record(self.stream)
            self.stream.synchronize()
            for name, a, b in zip(found, events, events[1:]):
                found[name].append(float(a.elapsed_time(b)))
        return found


def _cause(error: BaseException) -> BaseException:
    """What ended a capture: the end of a broken capture raises an error of its own over it."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return error
