"""OpenVINO's runtime, and the precisions that it supports natively on this CPU."""
from __future__ import annotations

import functools
from typing import Any

from ..optional import require

HINTS = {"float32": "f32", "bfloat16": "bf16"}


@functools.cache
def core() -> Any:
    """OpenVINO's runtime, created once, because it is slow to start."""
    return require("openvino", extra="openvino").Core()


def cpu_has_bfloat16() -> bool:
    """True if OpenVINO supports bfloat16 natively on this CPU."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
