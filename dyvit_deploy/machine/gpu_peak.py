"""What a GPU can do at most, and in what state it was measured."""
from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from statistics import median
from typing import Any

from ..config import EngineRunConfig
from ..errors import MissingDependency, reason
from ..optional import require
from .hardware import gpu_uuid
from .tf32 import full_float32

# Side of the square matrices; MiB of the buffer that is copied.
SIDE, COPY_MIB = 8192, 1024
# Seconds of load before a peak is read: a shorter one ends before the power limit lowers the clocks.
LOADED = 0.5
# Seconds between two samples of the clocks.
SAMPLE_EVERY = 0.05
# PyTorch's name for the precisions that torch.mm does not take.
LOWER = {"float8": "float8_e4m3fn"}
# NVML's bits for why a GPU runs below its highest clock; an idle one and an application's own setting are no fault.
HELD_BACK_BY = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "heat (software)", 0x40: "heat (hardware)",
                0x80: "power brake"}


def matmul_tflops(precision: str) -> float:
    """TFLOP/s of one product of two SIDE x SIDE matrices on the GPU under load, by events.

    `precision` is "float32" (without TF32), "float16", "bfloat16" or "float8" (e4m3, scaled, float16 out, with fast
    accumulation).

    Raises:
        RuntimeError: PyTorch or the GPU does not have it, or memory does not suffice.
    """
    torch = require("torch")
    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=getattr(torch, precision, torch.float16)) for _ in range(2))
    if precision in LOWER:
        kind, one = getattr(torch, LOWER[precision]), torch.ones((), device="cuda")
        # cuBLAS multiplies float8 rows by columns only.
        a, b = a.to(kind), b.t().contiguous().to(kind).t()

        def product() -> None:
            torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.float16, use_fast_accum=True)
    else:
        def product() -> None:
            torch.mm(a, b)
    with full_float32():
        return float(2 * SIDE ** 3 / _median_ms(product) / 1e9)


def copy_gb_per_s() -> float:
    """1e9 bytes per second that the GPU copies within its memory, read and written counted both; by events."""
    torch = require("torch")
    source = torch.empty(COPY_MIB << 20, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return float(2 * source.nbytes / _median_ms(lambda: target.copy_(source)) / 1e6)


def _median_ms(call: Callable[[], Any]) -> float:
    """Median milliseconds of calls in a row, by events on the GPU, over the later half of LOADED seconds."""
    torch = require("torch")
    times: list[float] = []
    end = time.perf_counter() + LOADED
    while time.perf_counter() < end or len(times) < 2:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(6)]
        events[0].record()
        for event in events[1:]:
            call()
            event.record()
        torch.cuda.synchronize()
        times += [before.elapsed_time(after) for before, after in zip(events, events[1:])]
    return float(median(times[len(times) // 2:]))


def gpu_facts(precisions: Collection[str]) -> dict[str, Any]:
    """The GPU's peak for those `precisions` that PyTorch multiplies in, and a list for clocks, sampled per batch size;
    int8 and float8 are measured against float16, which their other half runs in."""
    asked = {precision if precision in ("float32", "bfloat16") else "float16" for precision in precisions}
    peaks: dict[str, float | None] = {}
    for precision in sorted(asked):
        try:
            peaks[precision] = matmul_tflops(precision)
        # Out of memory, which loaded engines occupy.
        except RuntimeError:
            peaks[precision] = None
    return {"matmul_peak_tflops": peaks, "clocks": []}


class ClockSampler:
    """Samples clock, temperature, power and throttling of the current GPU in a thread, while a block runs.

    After the block a GPU is idle, and its clocks say nothing about it. Without NVML nothing is sampled.
    """

    def __init__(self, every: float = SAMPLE_EVERY) -> None:
        self._every, self._done = every, threading.Event()
        self._samples: list[dict[str, Any]] = []
        self._highest: int | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> ClockSampler:
        with contextlib.suppress(MissingDependency):
            nvml, uuid = require("pynvml"), gpu_uuid()
            if uuid:
                self._thread = threading.Thread(target=self._watch, args=(nvml, uuid), daemon=True)
                self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread:
            self._thread.join()

    def _watch(self, nvml: Any, uuid: str) -> None:
        def read(call: Callable[..., Any], *arguments: Any) -> Any:
            # Virtual machines do not report everything.
            with contextlib.suppress(nvml.NVMLError):
                return call(gpu, *arguments)
            return None

        # There is no driver, or the GPU is from another vendor.
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlInit()
            gpu = nvml.nvmlDeviceGetHandleByUUID(uuid)
            self._highest = read(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_SM)
            # The first sample comes after the first work.
            while not self._done.wait(self._every):
                self._samples.append({
                    "mhz": read(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
                    "celsius": read(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
                    "milliwatts": read(nvml.nvmlDeviceGetPowerUsage),
                    "reasons": read(nvml.nvmlDeviceGetCurrentClocksEventReasons)})

    def summary(self) -> dict[str, Any] | None:
        """MHz, degrees Celsius and watts over the block, and the share of samples in which the clock was held back,
        by reason; None where nothing was sampled, and for what this GPU does not tell."""
        def over(name: str, function: Callable[[list[float]], float], scale: float = 1) -> float | None:
            values = [sample[name] * scale for sample in self._samples if sample[name] is not None]
            return function(values) if values else None

        masks = [int(sample["reasons"]) for sample in self._samples if sample["reasons"] is not None]
        held = {name: sum(bool(mask & bit) for mask in masks) / max(1, len(masks))
                for bit, name in HELD_BACK_BY.items()}
        return {"samples": len(self._samples), "sm_mhz_median": over("mhz", median), "sm_mhz_min": over("mhz", min),
                "sm_mhz_highest_supported": self._highest, "temperature_c_max": over("celsius", max),
                "power_w_median": over("milliwatts", median, 1e-3),
                "held_back": {name: share for name, share in held.items() if share}} if self._samples else None


def gpu_notes(gpu: dict[str, Any], transfers: bool, cpu_too: bool) -> list[str]:
    """What a reader of GPU figures must know; `cpu_too`: other artifacts ran on the CPU."""
    peaks = ", ".join(f"{value:.0f} TFLOP/s in {name}" for name, value in gpu["matmul_peak_tflops"].items() if value)
    notes = [f"Peak of matrix products in this run: {peaks or 'not measured, memory did not suffice'}.",
             f"On the GPU the batch was timed {'with' if transfers else 'without'} the copies between host and GPU"
             f"{'' if transfers else ' (--transfers counts them)'}; GPU ms is by the GPU's own events: the kernels of "
             "a CUDA graph, else also the gaps in which it waits for the host to launch."]
    if cpu_too and not transfers:
        notes.append("Artifacts on the CPU take and give host memory; pass --transfers to compare those on the GPU "
                     "with them.")
    sampled = [clocks for clocks in gpu["clocks"] if clocks]
    held = max((clocks for clocks in sampled if clocks["held_back"]), default=None,
               key=lambda clocks: max(clocks["held_back"].values()))
    if held:
        reasons = ", ".join(f"{name} in {share:.0%} of the samples" for name, share in held["held_back"].items())
        notes.append(f"The GPU's clocks were held back while it was timed ({reasons}; "
                     f"{held['sm_mhz_median'] or 0:.0f} of {held['sm_mhz_highest_supported']} MHz); let it cool, or "
                     "lock its clocks.")
    if not sampled:
        notes.append("The GPU's clocks were not sampled: that needs its driver and pip install nvidia-ml-py.")
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
