"""What a GPU runner needs of CUDA, through PyTorch; a seam, so that its logic is tested without a GPU."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..optional import require


class Cuda:
    """Memory, streams, events and graphs of the current GPU."""

    def __init__(self) -> None:
        self._torch = require("torch")

    def on_device(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An uninitialised tensor on the GPU."""
        return self._torch.empty(shape, dtype=getattr(self._torch, dtype), device="cuda")

    def pinned(self, shape: tuple[int, ...], dtype: str) -> Any:
        """One in page-locked host memory, which copies fastest and without waiting."""
        return self._torch.empty(shape, dtype=getattr(self._torch, dtype), pin_memory=True)

    def stream(self) -> Any:
        """A stream; `cuda_stream` is its handle."""
        return self._torch.cuda.Stream()

    def within(self, stream: Any) -> Any:
        """Work of the block goes to `stream`."""
        return self._torch.cuda.stream(stream)

    def event(self) -> Any:
        """An event that can be timed: `record(stream)`, `elapsed_time(other)` in ms."""
        return self._torch.cuda.Event(enable_timing=True)

    def capture(self, launch: Callable[[], None], stream: Any) -> Callable[[], None]:
        """`launch` as a CUDA graph; returns what replays it on the current stream."""
        graph = self._torch.cuda.CUDAGraph()
        stream.synchronize()
        with self._torch.cuda.graph(graph, stream=stream):
            launch()
        replay: Callable[[], None] = graph.replay
        return replay

    def free_mib(self) -> float:
        """Memory of the GPU that is not taken, after PyTorch gave back what it keeps for itself."""
        self._torch.cuda.empty_cache()
        return float(self._torch.cuda.mem_get_info()[0]) / 2**20

    def out_of_memory(self) -> type[Exception]:
        """The exception of an allocation that failed."""
        kind: type[Exception] = self._torch.cuda.OutOfMemoryError
        return kind
