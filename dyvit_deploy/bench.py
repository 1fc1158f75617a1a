"""How fast is an artifact, and how much of what pruning promises does it deliver?

What is timed: one call of the runtime, from a float32 or uint8 batch in host memory to logits in
host memory; decoding and preprocessing of images are not in it. Candidates take turns within one
run, because machines drift: a ratio of two runs made at different times says little.

The promise is the ratio of multiply-accumulates, dense over pruned: the ceiling of the speed-up.
"""
from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from .artifacts import ArtifactFacts, library_versions
from .config import ExportConfig, LoadConfig
from .data.images import Track, no_track
from .errors import ConfigError
from .optional import require
from .runners.base import Runner
from .runners.open import is_checkpoint, open_runner


@dataclass(frozen=True)
class BenchConfig:
    """How to time.

    `batches` are batch sizes; a batch size is done when the 95 % interval of every median is within
    `stable` of it, or after `seconds`. `warmup` runs are thrown away. `baseline` is an artifact to
    compare with; None builds the dense backbone from the artifact's own metadata, with random
    weights, because time does not depend on them.
    """

    batches: tuple[int, ...] = (1, 8, 32)
    seconds: float = 20.0
    warmup: int = 3
    min_runs: int = 10
    stable: float = 0.02
    baseline: str | Path | None = None
    device: str | None = None
    threads: int = 0

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1:
            raise ConfigError(f"Batch sizes {list(self.batches)} must be at least 1.")
        if self.seconds <= 0:
            raise ConfigError(f"The time limit must be positive, not {self.seconds} s.")
        if self.threads < 0:
            raise ConfigError(f"The number of threads must be 0 (all cores) or more, not {self.threads}.")


@dataclass(frozen=True)
class Timing:
    """One artifact at one batch size.

    Latencies are milliseconds for the whole batch; `images_per_sec` is batch over the median.
    `peak_rss_mib` is the peak resident memory of a process that loads the artifact and runs this
    batch, None where it cannot be measured. `speedup` is the median of the baseline over this one's,
    `ceiling` the ratio of their multiply-accumulates; None where there is nothing to compare with.
    """

    artifact: str
    backend: str
    batch: int
    latency_ms_p50: float
    latency_ms_p90: float
    latency_ms_p99: float
    images_per_sec: float
    runs: int
    stable: bool
    peak_rss_mib: float | None
    gmacs: float | None
    speedup: float | None
    ceiling: float | None


@dataclass(frozen=True)
class BenchReport:
    """All timings of one run, with the machine they were measured on."""

    timings: tuple[Timing, ...]
    machine: dict[str, Any]
    versions: dict[str, str]
    config: BenchConfig
    notes: tuple[str, ...]

    def table(self) -> Table:
        """One row per artifact and batch size; ~ marks figures that did not settle."""
        table = Table(title=f"{self.machine['processor']}, {self.machine['logical_cores']} cores"
                            + (f", {self.machine['gpu']}" if self.machine["gpu"] else ""), title_justify="left")
        table.add_column("artifact", overflow="fold")
        for column in ("batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "peak MiB", "GMACs", "speed-up", "ceiling"):
            table.add_column(column, justify="right", no_wrap=True)
        for t in self.timings:
            optional = ((t.peak_rss_mib, ".0f"), (t.gmacs, ".3f"), (t.speedup, ".2f"), (t.ceiling, ".2f"))
            table.add_row(Text(f"{t.artifact} ({t.backend})"), str(t.batch),
                          f"{'' if t.stable else '~'}{t.latency_ms_p50:.2f}", f"{t.latency_ms_p90:.2f}",
                          f"{t.latency_ms_p99:.2f}", f"{t.images_per_sec:.1f}",
                          *("-" if value is None else format(value, form) for value, form in optional),
                          end_section=t is [u for u in self.timings if u.batch == t.batch][-1])
        return table

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        values["config"]["baseline"] = self.config.baseline and str(self.config.baseline)
        return values


@dataclass
class _Candidate:
    runner: Runner
    path: str | None                        # None: cannot be opened by another process
    gmacs: float | None


def benchmark(artifacts: Sequence[str | Path], config: BenchConfig = BenchConfig(), load: LoadConfig = LoadConfig(),
          track: Track[Any] = no_track) -> BenchReport:
    """Times `artifacts` and the dense baseline alternately, at each batch size.

    Raises:
        ArtifactError, BackendError: an artifact cannot be opened or run.
        ConfigError: values outside their range.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dyvit-bench-")))
        candidates, notes = _open_all(artifacts, config, load, folder, stack)
        timings: list[Timing] = []
        for batch in track(config.batches, "timing", len(config.batches)):
            timings += _time_batch(candidates, batch, config, load, has_baseline=len(candidates) > len(artifacts))
    if any(not t.stable for t in timings):
        notes.append(f"Rows marked ~ did not settle within {config.stable:.0%} in {config.seconds:g} s; "
                     "quiet the machine or raise --seconds.")
    return BenchReport(tuple(timings), machine(), library_versions("torch", "onnxruntime", "onnxruntime-gpu", "numpy"),
                       config, tuple(notes))


def _open_all(artifacts: Sequence[str | Path], config: BenchConfig, load: LoadConfig, folder: Path,
              stack: contextlib.ExitStack) -> tuple[list[_Candidate], list[str]]:
    """The baseline first, when there is one, then the artifacts."""
    candidates: list[_Candidate] = []
    notes: list[str] = []
    for path in artifacts:
        runner = stack.enter_context(open_runner(path, load=load, device=config.device, threads=config.threads))
        candidates.append(_Candidate(runner, str(path), _gmacs(runner.facts)))
    first = candidates[0].runner
    if config.baseline is not None:
        runner = stack.enter_context(open_runner(config.baseline, load=load, device=config.device,
                                                 threads=config.threads))
        return [_Candidate(runner, str(config.baseline), _gmacs(runner.facts)), *candidates], notes
    if first.facts is None:
        notes.append(f"{first.name} was not written by dyvit, so its dense baseline is unknown; pass --baseline FILE "
                     "to compare it with another artifact.")
    elif first.facts.dense:
        notes.append(f"{first.name} drops no tokens: it is its own baseline.")
    else:
        built = _dense_baseline(first, is_checkpoint(artifacts[0]), config, folder)
        return [_Candidate(stack.enter_context(built[0]), built[1], _gmacs(built[0].facts)), *candidates], notes
    return candidates, notes


def _dense_baseline(runner: Runner, in_pytorch: bool, config: BenchConfig, folder: Path) -> tuple[Runner, str | None]:
    """The dense backbone of `runner`'s model with random weights, on the same backend."""
    assert runner.facts is not None
    facts = dataclasses.replace(runner.facts, prune=None, keep_counts=None, parent=None, training=None)
    model = require("dyvit_deploy.model.dynamicvit").DynamicViT(facts.model, None).eval()
    if in_pytorch:
        pytorch = require("dyvit_deploy.runners.pytorch")
        device = runner.backend.split()[-1]
        return pytorch.PyTorchRunner(model.to(device), facts, "dense baseline"), None
    path = folder / "dense.onnx"
    require("dyvit_deploy.export.onnx").export_model(model, facts, path, ExportConfig(input=runner.input.dtype))
    dense = open_runner(path, device=config.device, threads=config.threads)
    dense.name = "dense baseline"
    return dense, str(path)


def _gmacs(facts: ArtifactFacts | None) -> float | None:
    if facts is None:
        return None
    [cost] = require("dyvit_deploy.model.macs").count_costs(facts.model, [facts.prune])
    return float(cost.gmacs)


def make_feed(runner: Runner, batch: int, seed: int = 0) -> NDArray[Any]:
    """Random input for `runner`: float32 standard normal, or uint8 0..255.

    Raises:
        ConfigError: the artifact's batch is fixed at another size, or its image size is free.
    """
    fixed, *rest = runner.input.shape
    if fixed not in (None, batch):
        raise ConfigError(f"{runner.name} takes batches of {fixed} only; pass --batch {fixed}.")
    if None in rest:
        raise ConfigError(f"{runner.name} takes images of any size, so there is no size to time; "
                          "export it for one size.")
    shape = (batch, *(side for side in rest if side is not None))
    rng = np.random.default_rng(seed)
    if runner.input.dtype == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.standard_normal(shape, dtype=np.float32)


def _time_batch(candidates: Sequence[_Candidate], batch: int, config: BenchConfig, load: LoadConfig,
                has_baseline: bool) -> list[Timing]:
    feeds = [make_feed(c.runner, batch) for c in candidates]
    samples = alternate([lambda c=c, f=f: c.runner.infer(f) for c, f in zip(candidates, feeds)], config)
    medians = [float(np.median(s)) for s in samples]
    base = candidates[0] if has_baseline else None
    rows = []
    for candidate, seconds, median in zip(candidates, samples, medians):
        p50, p90, p99 = (float(q) * 1e3 for q in np.quantile(seconds, [0.5, 0.9, 0.99]))
        compared = base is not None and candidate is not base
        ceiling = base.gmacs / candidate.gmacs if base and compared and base.gmacs and candidate.gmacs else None
        rows.append(Timing(candidate.runner.name, candidate.runner.backend, batch, p50, p90, p99, batch / median,
                           len(seconds), is_stable(seconds, config.stable), peak_memory(candidate.path, batch, load,
                           config.device, config.threads), candidate.gmacs,
                           medians[0] / median if compared else None, ceiling))
    return rows


def alternate(calls: Sequence[Any], config: BenchConfig) -> list[list[float]]:
    """Seconds of each call, taken in turns until all are stable or the time is up."""
    for call in calls:
        for _ in range(config.warmup):
            call()
    samples: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + config.seconds
    while time.perf_counter() < end or len(samples[0]) < config.min_runs:
        for call, times in zip(calls, samples):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        if len(samples[0]) >= config.min_runs and all(is_stable(times, config.stable) for times in samples):
            break
    return samples


def is_stable(seconds: Sequence[float], width: float) -> bool:
    """True when the 95 % confidence interval of the median lies within `width` (a fraction) of it.

    The interval is that of order statistics, which assumes nothing about the distribution.
    """
    ordered, count = np.sort(seconds), len(seconds)
    half = 0.98 * np.sqrt(count)                                           # 1.96 * sqrt(n) / 2
    low, high = max(0, int(count / 2 - half)), min(count - 1, int(np.ceil(count / 2 + half)))
    median = np.median(ordered)
    return bool(max(median - ordered[low], ordered[high] - median) <= width * median)


def peak_memory(path: str | None, batch: int, load: LoadConfig, device: str | None, threads: int) -> float | None:
    """MiB at the peak of a fresh process that opens `path` and runs one batch; None where unknown."""
    if path is None or platform.system() == "Windows":                     # no getrusage there
        return None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of_one_run, (path, batch, load, device, threads))


def _peak_of_one_run(path: str, batch: int, load: LoadConfig, device: str | None, threads: int) -> float:
    import resource

    with open_runner(path, load=load, device=device, threads=threads) as runner:
        runner.infer(make_feed(runner, batch))
    unit = 2**20 if platform.system() == "Darwin" else 2**10               # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {"processor": _processor(), "logical_cores": multiprocessing.cpu_count(), "system": platform.platform(),
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

