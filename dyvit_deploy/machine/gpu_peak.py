"""The GPU's peak performance, and its clocks, temperature and power during measurements."""
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
# Seconds of load per measurement: a shorter load ends before the power limit lowers the clocks.
LOAD_SECONDS = 0.5
# Seconds between two samples of the clocks.
SAMPLE_EVERY = 0.05
# PyTorch's names of the precisions that torch.mm does not support.
SCALED_MM_TYPES = {"float8": "float8_e4m3fn"}
# NVML's bits for the reasons of a lower clock; an idle GPU and a setting of the application are omitted as normal.
THROTTLE_REASONS = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "heat (software)", 0x40: "heat (hardware)",
                    0x80: "power brake"}


def matmul_tflops(precision: str) -> float:
    """TFLOP/s of one product of two SIDE x SIDE matrices on the GPU under load, by events.

    `precision` is "float32" (without TF32), "float16", "bfloat16" or "float8" (e4m3, scaled, with float16 output and
    fast accumulation).

    Raises:
        RuntimeError: PyTorch or the GPU does not support the precision, or memory does not suffice.
    """
    torch = require("torch")
    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=getattr(torch, precision, torch.float16)) for _ in range(2))
    if precision in SCALED_MM_TYPES:
        kind, one = getattr(torch, SCALED_MM_TYPES[precision]), torch.ones((), device="cuda")
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
    """Median milliseconds per call by CUDA events, over the second half of the calls in LOAD_SECONDS."""
    torch = require("torch")
    times: list[float] = []
    end = time.perf_counter() + LOAD_SECONDS
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
    """The GPU's peak for `precisions`, and an empty list for the clocks, which are sampled per batch size.

    For int8 and float8 it is the peak of float16, in which the rest of such an engine runs.
    """
    measured = {precision if precision in ("float32", "bfloat16") else "float16" for precision in precisions}
    peaks: dict[str, float | None] = {}
    for precision in sorted(measured):
        try:
            peaks[precision] = matmul_tflops(precision)
        # Engines may leave too little memory.
        except RuntimeError:
            peaks[precision] = None
    return {"matmul_peak_tflops": peaks, "clocks": []}


class ClockSampler:
    """Samples clock, temperature, power and throttling of the current GPU in a thread, while a block runs.

    Sampling after the block would be useless, because the GPU is idle then. Without NVML nothing is sampled.
    """

    def __init__(self, every: float = SAMPLE_EVERY) -> None:
        self._every, self._done = every, threading.Event()
        self._samples: list[dict[str, Any]] = []
        self._max_mhz: int | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> ClockSampler:
        with contextlib.suppress(MissingDependency):
            nvml, uuid = require("pynvml"), gpu_uuid()
            if uuid:
                self._thread = threading.Thread(target=self._sample, args=(nvml, uuid), daemon=True)
                self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread:
            self._thread.join()

    def _sample(self, nvml: Any, uuid: str) -> None:
        def read(call: Callable[..., Any], *arguments: Any) -> Any:
            # Virtual machines do not provide all values.
            with contextlib.suppress(nvml.NVMLError):
                return call(gpu, *arguments)
            return None

        # There may be no driver, or it may not know the GPU.
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlInit()
            gpu = nvml.nvmlDeviceGetHandleByUUID(uuid)
            self._max_mhz = read(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_SM)
            # Waits before the first sample, until the GPU is busy.
            while not self._done.wait(self._every):
                self._samples.append({
                    "mhz": read(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
                    "celsius": read(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
                    "milliwatts": read(nvml.nvmlDeviceGetPowerUsage),
                    "reasons": read(nvml.nvmlDeviceGetCurrentClocksEventReasons)})

    def summary(self) -> dict[str, Any] | None:
        """MHz, degrees Celsius and watts over the block, and the share of samples with a throttled clock, by reason.

        None without samples; values that this GPU does not provide are None.
        """
        def over(name: str, function: Callable[[list[float]], float], scale: float = 1) -> float | None:
            values = [sample[name] * scale for sample in self._samples if sample[name] is not None]
            return function(values) if values else None

        reasons = [int(sample["reasons"]) for sample in self._samples if sample["reasons"] is not None]
        throttled = {name: sum(bool(bits & bit) for bits in reasons) / max(1, len(reasons))
                     for bit, name in THROTTLE_REASONS.items()}
        return {"samples": len(self._samples), "sm_mhz_median": over("mhz", median), "sm_mhz_min": over("mhz", min),
                "sm_mhz_highest_supported": self._max_mhz, "temperature_c_max": over("celsius", max),
                "power_w_median": over("milliwatts", median, 1e-3),
                "held_back": {name: share for name, share in throttled.items() if share}} if self._samples else None


def gpu_notes(gpu: dict[str, Any], transfers: bool, cpu_too: bool) -> list[str]:
    """Notes for readers of GPU figures; `cpu_too`: other artifacts ran on the CPU."""
    peaks = ", ".join(f"{value:.0f} TFLOP/s in {name}" for name, value in gpu["matmul_peak_tflops"].items() if value)
    notes = [f"Peak of matrix products in this run: {peaks or 'not measured, memory did not suffice'}.",
             f"On the GPU the batch was timed {'with' if transfers else 'without'} the copies between host and GPU"
             f"{'' if transfers else ' (--transfers counts them)'}; GPU ms is by the GPU's own events: the kernels of "
             "a CUDA graph, else also the gaps in which it waits for the host to launch."]
    if cpu_too and not transfers:
        notes.append("Artifacts on the CPU read and write host memory; pass --transfers to compare artifacts on the "
                     "GPU with them.")
    sampled = [clocks for clocks in gpu["clocks"] if clocks]
    worst = max((clocks for clocks in sampled if clocks["held_back"]), default=None,
                key=lambda clocks: max(clocks["held_back"].values()))
    if worst:
        reasons = ", ".join(f"{name} in {share:.0%} of the samples" for name, share in worst["held_back"].items())
        notes.append(f"The GPU's clocks were held back while it was timed ({reasons}; "
                     f"{worst['sm_mhz_median'] or 0:.0f} of {worst['sm_mhz_highest_supported']} MHz); let it cool, or "
                     "lock its clocks.")
    if not sampled:
        notes.append("The GPU's clocks were not sampled: that needs its driver and pip install nvidia-ml-py.")
    return notes


def cross_check(runner: Any, plan: str, batch: int, run: EngineRunConfig, ours_ms: float) -> list[str]:
    """Times the plan of a `TensorRTRunner` with trtexec, at the same batch and profile, and returns the result as a
    note; empty without trtexec. trtexec cannot load plans of TensorRT for RTX."""
    tool = shutil.which("trtexec")
    if tool is None:
        return []
    shape = (batch, *(side or 1 for side in runner.input.shape[1:]))
    command = [tool, f"--loadEngine={plan}", f"--shapes={runner.input.name}:{'x'.join(map(str, shape))}",
               f"--useProfile={runner.profile_for(batch)}", "--noDataTransfers", "--useSpinWait", "--duration=3",
               *(["--useCudaGraph"] if run.cuda_graph else [])]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return [f"trtexec could not be run for a cross-check ({reason(error)})."]
    median_ms = re.search(r"GPU Compute Time:.*?median = ([\d.]+) ms", output)
    if median_ms is None:
        return [f"Batch {batch}: trtexec gives no time for {Path(plan).name}."]
    return [f"Batch {batch}: trtexec measures {float(median_ms[1]):.3f} ms on the GPU for {Path(plan).name}, this run "
            f"{ours_ms:.3f} ms."]
