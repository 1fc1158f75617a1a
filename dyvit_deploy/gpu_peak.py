"""What a GPU can do at most, and in what state it was measured."""
from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path
from statistics import median
from typing import Any

from .config import EngineRunConfig
from .errors import reason
from .optional import require

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
    """The GPU's peak for those `precisions` that PyTorch multiplies in, and a list for clocks, taken per batch size;
    int8 and float8 are measured against float16, which their other half runs in."""
    asked = {precision if precision in ("float32", "bfloat16") else "float16" for precision in precisions}
    peaks: dict[str, float | None] = {}
    for precision in sorted(asked):
        try:
            peaks[precision] = matmul_tflops(precision)
        except RuntimeError:                                               # of memory, which engines hold already
            peaks[precision] = None
    return {"matmul_peak_tflops": peaks, "clocks": []}


def gpu_notes(gpu: dict[str, Any], transfers: bool, others: bool) -> list[str]:
    """What a reader of GPU figures must know."""
    peaks = ", ".join(f"{value:.0f} TFLOP/s in {name}" for name, value in gpu["matmul_peak_tflops"].items() if value)
    notes = [f"Peak of matrix products in this run: {peaks or 'not measured, memory did not suffice'}.",
             "Engines were timed " + ("with" if transfers else "without") + " the copies between host and GPU"
             + ("; " if transfers else "; --transfers counts them, ") + "GPU ms is the engine alone, by events."]
    if others and not transfers:
        notes.append("The other artifacts take and give host memory; pass --transfers to compare engines with them.")
    for clocks in gpu["clocks"]:
        reasons = (clocks or {}).get("clocks_event_reasons.active", "")
        if re.fullmatch(r"0x[0-9a-fA-F]+", reasons) and int(reasons, 16) & ~IDLE_REASONS:
            notes.append(f"The GPU's clocks were held back during the run (reasons {reasons}, {clocks['clocks.sm']} of "
                         f"{clocks['clocks.max.sm']}); let it cool, or lock its clocks.")
            break
    return notes


def cross_check(runner: Any, plan: str, batch: int, run: EngineRunConfig, ours_ms: float) -> list[str]:
    """What trtexec measures for the plan of a `TensorRTRunner`, the same batch and profile, as a note; nothing
    where it does not exist. It loads no plans of TensorRT for RTX."""
    tool = shutil.which("trtexec")
    if tool is None:
        return []
    shape = (batch, *(side or 1 for side in runner.input.shape[1:]))
    command = [tool, f"--loadEngine={plan}", f"--shapes={runner.input.name}:{'x'.join(map(str, shape))}",
               f"--useProfile={runner.profile_for(batch)}", "--noDataTransfers", "--useSpinWait", "--duration=3",
               *(["--useCudaGraph"] if run.cuda_graph else [])]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return [f"trtexec could not be run for a cross-check ({reason(error)})."]
    found = re.search(r"GPU Compute Time:.*?median = ([\d.]+) ms", said)
    if found is None:
        return [f"Batch {batch}: trtexec gives no time for {Path(plan).name}."]
    return [f"Batch {batch}: trtexec measures {float(found[1]):.3f} ms on the GPU for {Path(plan).name}, this run "
            f"{ours_ms:.3f} ms."]
