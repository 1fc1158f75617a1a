"""Stand-ins that let benchmarks/gpu.py check the GPU code: CUDA on the host, and an engine's context in PyTorch."""
from __future__ import annotations

import contextlib
import ctypes
import math
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

# Image side, number of classes and number of kept tokens of the stand-in engine.
SIDE, CLASSES, KEPT = 64, 10, 16
# Smallest and largest batch of each optimization profile.
PROFILES = ((1, 4), (5, 16), (17, 64))


class HostCuda:
    """`dyvit_deploy.runners.cuda.Cuda` without a GPU, for rehearsals: work runs immediately, and a captured graph
    calls the captured function again."""

    def on_device(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        return torch.empty(shape, dtype=getattr(torch, dtype))

    pinned = on_device

    def stream(self) -> Any:
        return SimpleNamespace(cuda_stream=0, synchronize=lambda: None)

    def synchronize(self) -> None:
        pass

    def within(self, stream: Any) -> Any:
        return contextlib.nullcontext()

    def event(self) -> Any:
        event = SimpleNamespace(record=lambda stream: setattr(event, "at", time.perf_counter()),
                                elapsed_time=lambda later: (later.at - event.at) * 1e3)
        return event

    def capture(self, launch: Callable[[], None], stream: Any) -> Callable[[], None]:
        launch()
        return launch

    def free_mib(self) -> float:
        return math.inf

    def out_of_memory(self) -> type[Exception]:
        return MemoryError


class TorchContext:
    """The part of TensorRT's IExecutionContext that a runner uses, computed by PyTorch.

    It reads and writes the memory at the addresses that it is given, on the stream that it is given, so a buffer that
    is used too early, on the wrong stream or with another shape gives wrong outputs. `delay` products of large matrices
    come first: on a GPU they keep the stream busy while the host continues.
    """

    def __init__(self, device: str, delay: int = 20) -> None:
        self._device, self._delay = device, delay
        generator = torch.Generator().manual_seed(0)
        self._weights = torch.randn(3 * SIDE * SIDE, CLASSES, generator=generator).to(device)
        self._busy = torch.randn(1024 if device == "cuda" else 8, 1024 if device == "cuda" else 8, device=device)
        self._profile: int | None = None
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self.profiles_chosen: list[int] = []

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile, self._shape = profile_index, ()
        self._tensors.clear()
        self.profiles_chosen.append(profile_index)
        return 0 <= profile_index < len(PROFILES)

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        least, most = PROFILES[self._profile or 0]
        self._shape = tuple(shape)
        return self._profile is not None and least <= shape[0] <= most

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"images": self._shape, "logits": (self._shape[0], CLASSES), "kept_0": (self._shape[0], KEPT)}[name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        self._tensors.pop(name, None)
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        gpu = self._device == "cuda"
        with torch.cuda.stream(torch.cuda.ExternalStream(stream_handle)) if gpu else contextlib.nullcontext():
            for _ in range(self._delay):
                torch.mm(self._busy, self._busy)
            logits, kept = self.answer(self._tensor("images", "float32"))
            self._tensor("logits", "float32").copy_(logits)
            self._tensor("kept_0", "int64").copy_(kept)
        return True

    def answer(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [B, 3, SIDE, SIDE] -> logits [B, CLASSES], and the places of the largest pixels int64 [B, KEPT]."""
        flat = images.flatten(1)
        return flat @ self._weights, flat.topk(KEPT).indices

    def _tensor(self, name: str, dtype: str) -> torch.Tensor:
        """The memory at an address as a tensor; created in the first run, before a capture."""
        if name not in self._tensors:
            self._tensors[name] = self._view(name, dtype)
        return self._tensors[name]

    def _view(self, name: str, dtype: str) -> torch.Tensor:
        shape, kind = self.get_tensor_shape(name), getattr(torch, dtype)
        if self._device == "cuda":
            letter = {"float32": "<f4", "int64": "<i8"}[dtype]
            memory = SimpleNamespace(__cuda_array_interface__={
                "shape": shape, "typestr": letter, "data": (self._addresses[name], False), "version": 3})
            return torch.as_tensor(memory, device="cuda")
        size = math.prod(shape) * kind.itemsize
        return torch.frombuffer((ctypes.c_char * size).from_address(self._addresses[name]), dtype=kind).reshape(shape)


def profile_for(batch: int) -> int:
    """The profile of the stand-in engine that takes `batch` images."""
    return next(number for number, (least, most) in enumerate(PROFILES) if least <= batch <= most)
