"""What a GPU can do at most, and in what state it was measured."""
from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path
from statistics import median
from typing import Any

from .machine import gpu_clocks
from .optional import require
from .runners.base import InputSpec

SIDE, RUNS = 8192, 10                       # of the square matrices; products timed
IDLE_REASONS = 0x1                          # nvidia-smi's bit for "nothing to do"


def matmul_tflops(precision: str, side: int = SIDE) -> float:
    """TFLOP/s of one product of two `side` x `side` matrices on the GPU, by events; the median of RUNS.

    `precision` is "float32" (without TF32), "float16" or "bfloat16".
    """
    torch = require("torch")
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        a, b = (torch.randn(side, side, device="cuda", dtype=getattr(torch, precision)) for _ in range(2))
        events = [torch.cuda.Event(enable_timing=True) for _ in range(RUNS + 1)]
        for _ in range(3):
            a @ b
        events[0].record()
        for event in events[1:]:
            a @ b
            event.record()
        torch.cuda.synchronize()
        ms = median(before.elapsed_time(after) for before, after in zip(events, events[1:]))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    return float(2 * side ** 3 / ms / 1e9)


def gpu_facts(precisions: Collection[str]) -> dict[str, Any]:
    """The GPU's peak for those `precisions` that PyTorch multiplies in, and its clocks; int8 and float8 are
    measured against float16, which their other half runs in."""
    asked = {precision if precision in ("float32", "bfloat16") else "float16" for precision in precisions}
    return {"matmul_peak_tflops": {precision: matmul_tflops(precision) for precision in sorted(asked)},
            "clocks_before": gpu_clocks()}


def gpu_notes(gpu: dict[str, Any], transfers: bool, others: bool) -> list[str]:
    """What a reader of GPU figures must know."""
    peaks = ", ".join(f"{value:.0f} TFLOP/s in {name}" for name, value in gpu["matmul_peak_tflops"].items())
    notes = [f"Peak of matrix products in this run: {peaks}.",
             "Engines were timed " + ("with" if transfers else "without") + " the copies between host and GPU"
             + ("; " if transfers else "; --transfers counts them, ") + "GPU ms is the engine alone, by events."]
    if others and not transfers:
        notes.append("The other artifacts take and give host memory; pass --transfers to compare engines with them.")
    for when in ("before", "after"):
        clocks = gpu.get(f"clocks_{when}") or {}
        reasons = clocks.get("clocks_event_reasons.active", "")
        if re.fullmatch(r"0x[0-9a-fA-F]+", reasons) and int(reasons, 16) & ~IDLE_REASONS:
            notes.append(f"The GPU's clocks were held back {when} the run (reasons {reasons}, {clocks['clocks.sm']} of "
                         f"{clocks['clocks.max.sm']}); let it cool, or lock its clocks.")
    return notes


def cross_check(plan: str, images: InputSpec, batch: int, ours_ms: float) -> list[str]:
    """What trtexec measures for the same plan and batch, as a note; nothing where it does not exist. It loads
    no plans of TensorRT for RTX."""
    theirs = trtexec_compute_ms(Path(plan), images.name, (batch, *(side or 1 for side in images.shape[1:])))
    return [] if theirs is None else [f"Batch {batch}: trtexec measures {theirs:.3f} ms on the GPU for "
                                      f"{Path(plan).name}, this run {ours_ms:.3f} ms."]


def trtexec_compute_ms(plan: Path, name: str, shape: tuple[int, ...]) -> float | None:
    """Median milliseconds on the GPU that trtexec measures for the plan; None where it does not exist or refuses."""
    tool = shutil.which("trtexec")
    if tool is None:
        return None
    command = [tool, f"--loadEngine={plan}", f"--shapes={name}:{'x'.join(map(str, shape))}", "--noDataTransfers",
               "--useSpinWait", "--duration=3"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"GPU Compute Time:.*?median = ([\d.]+) ms", done.stdout)
    return float(found[1]) if found else None
