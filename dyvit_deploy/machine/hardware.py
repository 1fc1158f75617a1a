"""What figures were measured on, and how much memory a process took."""
from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigError
from ..optional import require
from .processes import gpu_number

# The least compute capability of a GPU that has the precision (TensorRT's support matrix).
LEAST_CAPABILITY = {"float8": 8.9, "bfloat16": 8.0, "int8": 7.5, "float16": 7.5, "float32": 7.5}


def machine() -> dict[str, Any]:
    """What the figures were measured on; `gpu` is the name of this process's GPU, None without one."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {"processor": _processor(), "logical_cores": os.cpu_count(), "cpus": cpus, "system": platform.platform(),
            "gpu": _gpu()}


@contextlib.contextmanager
def on_cpus(cpus: Collection[int]) -> Iterator[None]:
    """This thread, and all threads and processes that it starts within, run on these cores only; empty for any.

    Raises:
        ConfigError: the system cannot do that, or does not have these cores.
    """
    if not cpus:
        yield
        return
    if not hasattr(os, "sched_setaffinity"):
        raise ConfigError("This system does not bind a process to cores; leave out --cpus.")
    allowed = os.sched_getaffinity(0)
    if not set(cpus) <= allowed:
        raise ConfigError(f"Cores {sorted(set(cpus) - allowed)} are not among those of this process, "
                          f"{sorted(allowed)}; choose from them.")
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str | None:
    found = gpu()
    return found.name if found else None


class Gpu(NamedTuple):
    """The GPU of this process; `compute_capability` is like "8.9"."""

    name: str
    compute_capability: str


def gpu() -> Gpu | None:
    """The GPU that this process uses, None without one or without its driver."""
    torch = require("torch")
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(gpu_number())
    return Gpu(properties.name, f"{properties.major}.{properties.minor}")


def system() -> str:
    """Operating system and processor family, which native code is for: "linux-x86_64"."""
    return f"{platform.system()}-{platform.machine()}".lower()


def gpu_uuid() -> str | None:
    """The name by which NVIDIA's tools know the GPU of this process, None without one; they and PyTorch count GPUs in
    different orders."""
    torch = require("torch")
    if not torch.cuda.is_available():
        return None
    uuid = getattr(torch.cuda.get_device_properties(gpu_number()), "uuid", None)
    return f"GPU-{uuid}" if uuid else None


def peak_mib() -> float | None:
    """Peak resident memory of this process in MiB; None where it is unknown."""
    # On Linux getrusage would give the peak of the process that started this one.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    if platform.system() == "Darwin":
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return None
