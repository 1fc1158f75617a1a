"""OpenVINO's runtime on this CPU, and the precisions that it computes in natively."""
from __future__ import annotations

import functools
from typing import Any

from ..optional import require

HINTS = {"float32": "f32", "bfloat16": "bf16"}


@functools.cache
def core() -> Any:
    """OpenVINO's runtime, which is slow to start."""
    return require("openvino", extra="openvino").Core()


def cpu_has_bfloat16() -> bool:
    """True when OpenVINO computes bfloat16 natively on this CPU."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
