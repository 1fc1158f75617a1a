"""The parts of CUDA that GPU runners use, through PyTorch; tests replace this class to run without a GPU."""
from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from ..optional import require


class Cuda:
    """Memory, streams, events and graphs of the current GPU."""

    def __init__(self) -> None:
        self._torch = require("torch")
        self._failed: list[Any] = []

    def on_device(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An uninitialised tensor on the GPU."""
        return self._torch.empty(shape, dtype=getattr(self._torch, dtype), device="cuda")

    def pinned(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An uninitialised tensor in page-locked host memory, which copies fastest and asynchronously."""
        return self._torch.empty(shape, dtype=getattr(self._torch, dtype), pin_memory=True)

    def stream(self) -> Any:
        """A stream; `cuda_stream` is its handle."""
        return self._torch.cuda.Stream()

    def within(self, stream: Any) -> Any:
        """A context manager: work started within the block goes to `stream`."""
        return self._torch.cuda.stream(stream)

    def synchronize(self) -> None:
        """Waits for all streams of the GPU."""
        self._torch.cuda.synchronize()

    def event(self) -> Any:
        """An event with timing enabled: `record(stream)`, `elapsed_time(other)` in ms."""
        return self._torch.cuda.Event(enable_timing=True)

    def capture(self, launch: Callable[[], None], stream: Any) -> Callable[[], None]:
        """Captures `launch` as a CUDA graph; returns a function that replays it on the current stream.

        Raises:
            RuntimeError: an operation in `launch` cannot be captured; `stream` can still be used without a graph.
        """
        graph = self._torch.cuda.CUDAGraph()
        stream.synchronize()
        try:
            # The outer block restores the current stream, which a failed capture leaves set. The error mode is the one
            # of trtexec and Triton: in the default mode, a CUDA call of any other thread, such as one that samples
            # clocks, would end the capture.
            with self.within(stream), self._torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                launch()
        except RuntimeError:
            self._after_failed_capture(graph)
            raise
        replay: Callable[[], None] = graph.replay
        return replay

    def _after_failed_capture(self, graph: Any) -> None:
        """Makes PyTorch usable again: its allocator still refers to `graph`, and up to 2.11 its random generator
        remains in the state of a capture."""
        self._failed.append(graph)
        with contextlib.suppress(RuntimeError, IndexError):
            generator = self._torch.cuda.default_generators[self._torch.cuda.current_device()]
            generator.graphsafe_set_state(self._torch.Generator(device="cuda").graphsafe_get_state())

    def free_mib(self) -> float:
        """Free GPU memory in MiB, after PyTorch has released its cache."""
        self._torch.cuda.empty_cache()
        return float(self._torch.cuda.mem_get_info()[0]) / 2**20

    def out_of_memory(self) -> type[Exception]:
        """The exception that a failed allocation raises."""
        kind: type[Exception] = self._torch.cuda.OutOfMemoryError
        return kind
