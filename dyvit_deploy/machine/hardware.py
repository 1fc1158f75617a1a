"""The hardware of this machine, and the peak memory of this process."""
from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigError
from ..optional import require
from .posix import allowed_cores, peak_bytes, use_cores
from .processes import gpu_number

# The least compute capability of a GPU that supports each precision (TensorRT's support matrix).
LEAST_CAPABILITY = {"float8": 8.9, "bfloat16": 8.0, "int8": 7.5, "float16": 7.5, "float32": 7.5}


def machine() -> dict[str, Any]:
    """The facts about this machine in reports; `gpu` is the name of this process's GPU, or None."""
    cores = allowed_cores()
    return {"processor": _processor(), "logical_cores": os.cpu_count(), "cpus": cores and sorted(cores),
            "system": platform.platform(), "gpu": _gpu()}


@contextlib.contextmanager
def on_cpus(cpus: Collection[int]) -> Iterator[None]:
    """Binds this thread, and the threads and processes that it starts within the block, to these cores. Without
    `cpus` nothing is bound.

    Raises:
        ConfigError: the system does not support binding, or the process may not use these cores.
    """
    if not cpus:
        yield
        return
    allowed = allowed_cores()
    if allowed is None:
        raise ConfigError("This system does not bind a process to cores; leave out --cpus.")
    if not set(cpus) <= allowed:
        raise ConfigError(f"Cores {sorted(set(cpus) - allowed)} are not among those of this process, "
                          f"{sorted(allowed)}; choose from them.")
    use_cores(cpus)
    try:
        yield
    finally:
        use_cores(allowed)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str | None:
    device = gpu()
    return device.name if device else None


class Gpu(NamedTuple):
    """The GPU of this process; `compute_capability` is like "8.9"."""

    name: str
    compute_capability: str


def gpu() -> Gpu | None:
    """The GPU that this process uses; None without a GPU or its driver."""
    torch = require("torch")
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(gpu_number())
    return Gpu(properties.name, f"{properties.major}.{properties.minor}")


def system() -> str:
    """Operating system and processor family, the platform of native code: "linux-x86_64"."""
    return f"{platform.system()}-{platform.machine()}".lower()


def gpu_uuid() -> str | None:
    """The UUID of this process's GPU, for NVIDIA's tools, which number GPUs differently from PyTorch; None without a
    GPU."""
    torch = require("torch")
    if not torch.cuda.is_available():
        return None
    uuid = getattr(torch.cuda.get_device_properties(gpu_number()), "uuid", None)
    return f"GPU-{uuid}" if uuid else None


def peak_mib() -> float | None:
    """Peak resident memory of this process in MiB; None if the system does not provide it."""
    # On Linux, getrusage may return the peak of the parent process.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    peak = peak_bytes()
    return None if peak is None else peak / 2**20
