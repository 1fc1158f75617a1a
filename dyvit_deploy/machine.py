"""What figures were measured on, and how much memory a process took."""
from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import Any

from .optional import require


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {"processor": _processor(), "logical_cores": os.cpu_count(), "system": platform.platform(),
            "gpu": _gpu()}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str | None:
    torch = require("torch")
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


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
