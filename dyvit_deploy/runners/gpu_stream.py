"""A GPU stream with its buffers for one input shape: copies, launches, graph capture, timing with events."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import reason
from .base import TensorSpec
from .cuda import Cuda

# Launches before a capture: libraries allocate memory in the first ones.
WARM_UP = 3


class Program(Protocol):
    """What a stream launches: the execution context of an engine, or a PyTorch model.

    `input_dtype` is the data type of the input on the GPU, to which an upload converts; None keeps the host's type.
    """

    @property
    def input_dtype(self) -> str | None: ...

    def prepare(self, shape: tuple[int, ...], stream: Any) -> Sequence[TensorSpec]:
        """Prepares the program for inputs of `shape`; returns its outputs, with their shapes.

        Raises:
            RuntimeError: the program does not take inputs of this shape.
        """

    def bind(self, tensors: Mapping[str, Any]) -> None:
        """Sets the GPU tensors, by name, that the program reads its input from and writes its outputs to."""

    def enqueue(self, stream: Any) -> None:
        """Starts one batch on `stream` without waiting for it."""


class GpuStream:
    """One program on one stream. `captured` is True if it is replayed as a CUDA graph; `capture_error` is the reason if
    a requested capture failed."""

    def __init__(self, program: Program, cuda: Cuda) -> None:
        self.program, self._cuda = program, cuda
        self.torch_stream = cuda.stream()
        self.shape: tuple[int, ...] | None = None
        self._replay: Callable[[], None] | None = None
        self.captured, self.capture_error = False, ""

    def prepare(self, shape: tuple[int, ...], source: TensorSpec, graph: bool) -> None:
        """Allocates buffers for `shape`, runs once, so that libraries compile and allocate, and captures a `graph`.

        Raises:
            RuntimeError: the program does not take the shape, or failed; or the GPU is out of memory.
        """
        cuda = self._cuda
        # On another stream, a graph may still be running, or a model's weights may still be copied.
        cuda.synchronize()
        # Without a shape the stream counts as unprepared, so that a failure below leaves nothing half-prepared in use.
        self.shape, self._replay, self.captured, self.capture_error = None, None, False, ""
        outputs = self.program.prepare(shape, self.torch_stream)
        # The allocations and the zeros belong to this stream.
        with cuda.within(self.torch_stream):
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
        self.torch_stream.synchronize()
        if graph:
            self._capture()
        self.shape = shape

    def _capture(self) -> None:
        """Captures the program as a CUDA graph; runs without one if that fails, as trtexec and Triton do."""
        try:
            self._replay = self._cuda.capture(self._enqueue, self.torch_stream)
            self.captured = True
        except self._cuda.out_of_memory():
            raise
        except RuntimeError as error:
            self.capture_error = reason(_cause(error))
            self.launch()
            self.torch_stream.synchronize()

    def _enqueue(self) -> None:
        self.program.enqueue(self.torch_stream)

    def launch(self) -> None:
        """Starts one batch without waiting for it."""
        if self._replay is None:
            self._enqueue()
        else:
            with self._cuda.within(self.torch_stream):
                self._replay()

    def upload(self, feed: NDArray[Any]) -> None:
        """Starts to copy `feed` to the GPU without waiting; it has the prepared shape and the source's data type."""
        self._stage(feed)
        self._start_upload()

    def _stage(self, feed: NDArray[Any]) -> None:
        """Puts `feed` into the host buffer, after the previous copy from it has ended."""
        self.torch_stream.synchronize()
        self._source[0].numpy()[...] = feed

    def _start_upload(self) -> None:
        host, device = self._source
        with self._cuda.within(self.torch_stream):
            # Copying first converts on the GPU, which is faster than converting on the host.
            if host.dtype != device.dtype:
                host = host.to(device.device, non_blocking=True)
            device.copy_(host, non_blocking=True)

    def download(self, names: Sequence[str]) -> list[NDArray[Any]]:
        """Waits for the batch and returns copies of the outputs called `names`.

        Raises:
            RuntimeError: the program failed.
        """
        self._start_download(names)
        self.torch_stream.synchronize()
        return [np.array(self._results[name][0].numpy()) for name in names]

    def _start_download(self, names: Sequence[str]) -> None:
        with self._cuda.within(self.torch_stream):
            for name in names:
                host, device = self._results[name]
                host.copy_(device, non_blocking=True)

    def timed(self, names: Sequence[str], feed: NDArray[Any], runs: int) -> dict[str, list[float]]:
        """Times of `runs` batches in ms, by events on the GPU: `upload`, `compute`, `download`.

        With a captured graph, `compute` is the GPU's own time; without one it includes gaps in which the GPU waits for
        the host to launch.

        Raises:
            RuntimeError: the program failed.
        """
        phases: dict[str, list[float]] = {"upload": [], "compute": [], "download": []}
        self._stage(feed)
        for _ in range(runs):
            events = [self._cuda.event() for _ in range(4)]
            events[0].record(self.torch_stream)
            self._start_upload()
            events[1].record(self.torch_stream)
            self.launch()
            events[2].record(self.torch_stream)
            self._start_download(names)
            events[3].record(self.torch_stream)
            self.torch_stream.synchronize()
            for name, start, end in zip(phases, events, events[1:]):
                phases[name].append(float(start.elapsed_time(end)))
        return phases


def _cause(error: BaseException) -> BaseException:
    """The error that broke a capture; ending a broken capture raises a second error on top of it."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return error
