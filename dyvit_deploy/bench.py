"""How fast is an artifact, and how much of what pruning promises does it deliver?

What is timed: one call of the runtime, from a float32 or uint8 batch in host memory to logits in
host memory; decoding and preprocessing of images are not in it. An engine's batch lies on the GPU
already, as in trtexec, unless the copies are asked for; they are timed apart either way. Candidates
take turns within one run, because machines drift: a ratio of two runs made at different times says little.

The promise is the ratio of multiply-accumulates, dense over pruned: the ceiling of the speed-up.
"""
from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import subprocess
import sys
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

from .artifacts import library_versions, require_source
from .baselines import Candidate, count_gmacs, with_baselines
from .config import EngineRunConfig, LoadConfig
from .data.images import Track, no_track
from .errors import BackendError, ConfigError
from .gpu_peak import cross_check, gpu_facts, gpu_notes
from .machine import gpu_clocks, machine, peak_mib
from .runners.base import Runner
from .runners.open import is_engine, load_for, open_runner

log = logging.getLogger(__name__)
LIBRARIES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy")
GPU_RUNS = 50                               # timed by events, beside those timed by the clock
TURN = 3                                    # counted runs in a row of one candidate


@dataclass(frozen=True)
class BenchConfig:
    """How to time.

    `batches` are batch sizes; a batch size is done when the 95 % interval of every median is within
    `stable` of it, or after `seconds`. `warmup` runs are thrown away. `baseline` is an artifact to
    compare with; None builds the dense backbone from each artifact's own metadata, with random
    weights, because time does not depend on them. `memory` measures peak memory, in a process per row.
    `transfers` counts the copies between host and GPU in an engine's latency.
    """

    batches: tuple[int, ...] = (1, 8, 32)
    seconds: float = 20.0
    warmup: int = 3
    min_runs: int = 10
    stable: float = 0.02
    baseline: str | Path | None = None
    device: str | None = None
    threads: int = 0
    memory: bool = True
    transfers: bool = False

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1:
            raise ConfigError(f"Batch sizes {list(self.batches)} must be at least 1.")
        if not self.seconds > 0:
            raise ConfigError(f"The time limit must be positive, not {self.seconds} s.")
        if self.threads < 0:
            raise ConfigError(f"The number of threads must be 0 (all cores) or more, not {self.threads}.")


@dataclass(frozen=True)
class Timing:
    """One artifact at one batch size; `precision` is what its products are computed in. `stand_in` marks a
    dense backbone with random weights that was built to compare with.

    Latencies are milliseconds for the whole batch; `images_per_sec` is batch over the median.
    `peak_rss_mib` is the peak resident memory of a process that loads the artifact and runs this
    batch, None where it cannot be measured. `speedup` is `images_per_sec` over the baseline's,
    `ceiling` the ratio of their multiply-accumulates; None where there is nothing to compare with.
    `gpu_ms_p50` are the medians of an engine's phases by the GPU's own events (`upload`, `compute`,
    `download`; one stream), and `tflops` what its products amount to in `compute`, at two operations a
    multiply-accumulate. An engine runs `streams` batches at once, which `images_per_sec` counts.
    """

    artifact: str
    backend: str
    precision: str
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
    stand_in: bool = False
    streams: int = 1
    gpu_ms_p50: dict[str, float] | None = None
    tflops: float | None = None


@dataclass(frozen=True)
class BenchReport:
    """All timings of one run, with the machine they were measured on; `gpu` has what only a GPU run tells:
    its clocks before and after, and the peak of its matrix products, measured in this run."""

    timings: tuple[Timing, ...]
    machine: dict[str, Any]
    versions: dict[str, str]
    config: BenchConfig
    notes: tuple[str, ...]
    gpu: dict[str, Any] | None = None

    def table(self) -> Table:
        """One row per artifact and batch size; ~ marks figures that did not settle."""
        table = Table(title=f"{self.machine['processor']}, {self.machine['logical_cores']} cores"
                            + (f", {self.machine['gpu']}" if self.machine["gpu"] else ""), title_justify="left")
        table.add_column("artifact", overflow="fold")
        table.add_column("precision")
        for column in ("batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "peak MiB", "GMACs", "speed-up", "ceiling"):
            table.add_column(column, justify="right", no_wrap=True)
        gpu = any(t.gpu_ms_p50 for t in self.timings)
        for column in ("GPU ms", "copies ms", "TFLOP/s") if gpu else ():
            table.add_column(column, justify="right", no_wrap=True)
        for t in self.timings:
            phases = t.gpu_ms_p50 or {}
            copies = phases["upload"] + phases["download"] if phases else None
            optional = [(t.peak_rss_mib, ".0f"), (t.gmacs, ".3f"), (t.speedup, ".2f"), (t.ceiling, ".2f")]
            optional += [(phases.get("compute"), ".3f"), (copies, ".3f"), (t.tflops, ".1f")] if gpu else []
            table.add_row(Text(f"{t.artifact} ({t.backend})"), t.precision, str(t.batch),
                          f"{'' if t.stable else '~'}{t.latency_ms_p50:.2f}", f"{t.latency_ms_p90:.2f}",
                          f"{t.latency_ms_p99:.2f}", f"{t.images_per_sec:.1f}",
                          *("-" if value is None else format(value, form) for value, form in optional),
                          end_section=t is [u for u in self.timings if u.batch == t.batch][-1])
        return table

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        values["config"]["baseline"] = self.config.baseline and str(self.config.baseline)
        return values


def benchmark(artifacts: Sequence[str | Path], config: BenchConfig = BenchConfig(), load: LoadConfig = LoadConfig(),
              track: Track[Any] = no_track) -> BenchReport:
    """Times `artifacts` and their dense baselines alternately, at each batch size.

    Raises:
        ArtifactError, BackendError: an artifact cannot be opened or run.
        ConfigError: values outside their range.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dyvit-bench-")))

        def opened(path: str | Path) -> Candidate:
            runner = stack.enter_context(open_runner(path, load=load_for(path, load), device=config.device,
                                                     threads=config.threads))
            return Candidate(runner, str(path), count_gmacs(runner.facts))

        for path in artifacts:                                             # before the first one is loaded
            require_source(path)
        if (config.transfers or load.engine != EngineRunConfig()) and not any(map(is_engine, artifacts)):
            raise ConfigError("--streams, --cuda-graph, --transfers, --trust and --runtime-cache are for engine plans; "
                              "leave them out.")
        given = [opened(path) for path in artifacts]
        emulated = [c.runner for c in given if c.runner.emulated]
        if len(emulated) == len(given):
            first = emulated[0]
            raise BackendError(f"{first.name} is {first.precision}, which {first.backend} only emulates on a CPU: its "
                               "time says nothing; time the engine that TensorRT builds of it.")
        candidates, notes = with_baselines([c for c in given if not c.runner.emulated], config.baseline, folder, opened)
        notes += [f"{runner.name} was left out: {runner.backend} only emulates {runner.precision} on a CPU."
                  for runner in emulated]
        engines = any(is_engine(c.path) for c in candidates)
        gpu = gpu_facts({c.runner.precision for c in candidates}) if engines else None
        for candidate, batch in itertools.product(candidates, config.batches):
            candidate.runner.check_batch(batch)                            # before an hour of timing, not after
        timings: list[Timing] = []
        for batch in track(config.batches, "timing", len(config.batches)):
            rows = _time_batch(candidates, batch, config, load, gpu)
            timings += rows
            notes += [line for c, row in zip(candidates, rows) if row.gpu_ms_p50 and c.runner.backend == "TensorRT"
                      for line in cross_check(c.runner, c.path, batch, load.engine, row.gpu_ms_p50["compute"])]
        if gpu is not None:
            notes += gpu_notes(gpu, config.transfers, any(not is_engine(c.path) for c in candidates))
    notes += faster_here(timings)
    notes += [f"{c.runner.name} is for TensorRT: its time in {c.runner.backend} says nothing about an engine of it."
              for c in candidates if not is_engine(c.path) and c.runner.facts
              and (c.runner.facts.lowered or {}).get("target") == "tensorrt"]
    if any(not t.stable for t in timings):
        notes.append(f"Rows marked ~ did not settle within {config.stable:.0%} in {config.seconds:g} s; "
                     "quiet the machine or raise --seconds.")
    return BenchReport(tuple(timings), machine(), library_versions(*LIBRARIES), config, tuple(notes), gpu)


def make_feed(runner: Runner, batch: int, image_size: tuple[int, int] | None = None, seed: int = 0) -> NDArray[Any]:
    """Random input for `runner`: float standard normal, or uint8 0..255.

    Raises:
        ConfigError: the artifact's batch is fixed at another size.
        BackendError: its image size is free and `image_size` is None.
    """
    runner.check_batch(batch)
    size = runner.image_spec(image_size).image_size
    rng = np.random.default_rng(seed)
    if runner.input.dtype == "uint8":
        return rng.integers(0, 256, (batch, *size, 3), dtype=np.uint8)
    return rng.standard_normal((batch, 3, *size), dtype=np.float32).astype(runner.input.dtype)


def faster_here(timings: Sequence[Timing]) -> list[str]:
    """Which precision is fastest on this machine at each batch size, and which ones only look as if they were.

    Compared are artifacts of one cost (`gmacs`), so of one model and schedule.
    """
    notes = []
    for batch, gmacs in dict.fromkeys((t.batch, t.gmacs) for t in timings):
        rows = sorted((t for t in timings if (t.batch, t.gmacs, t.stand_in) == (batch, gmacs, False)),
                      key=lambda t: -t.images_per_sec)
        if len({t.precision for t in rows}) > 1:
            ratio = rows[0].images_per_sec / rows[1].images_per_sec
            notes.append(f"Batch {batch}: {_who(rows[0])} is the fastest here, {ratio:.2f}x {_who(rows[1])}.")
        for lower in (t for t in rows if t.precision != "float32"):
            faster = [t for t in rows if (t.backend, t.precision) == (lower.backend, "float32")
                      and t.images_per_sec >= lower.images_per_sec]
            notes += [f"Batch {batch}: {_who(lower)} is NOT faster than {_who(t)} here: "
                      f"{lower.images_per_sec / t.images_per_sec:.2f}x." for t in faster]
            if lower.speedup is not None and lower.speedup < 1 and not faster:
                notes.append(f"Batch {batch}: {_who(lower)} is NOT faster than its baseline: {lower.speedup:.2f}x.")
    return notes


def _who(timing: Timing) -> str:
    return f"{timing.artifact} ({timing.precision}, {timing.backend})"


def _time_batch(candidates: Sequence[Candidate], batch: int, config: BenchConfig, load: LoadConfig,
                gpu: dict[str, Any] | None) -> list[Timing]:
    feeds = [make_feed(c.runner, batch, load.image_size) for c in candidates]
    samples = alternate([c.runner.timed_call(f, config.transfers) for c, f in zip(candidates, feeds)], config)
    if gpu is not None:
        gpu["clocks"].append(gpu_clocks())                                 # while it is still warm
    streams = {id(c): load.engine.streams if is_engine(c.path) else 1 for c in candidates}
    speed = {id(c): streams[id(c)] * batch / float(np.median(s)) for c, s in zip(candidates, samples)}  # images/s
    rows = []
    for candidate, feed, seconds in zip(candidates, feeds, samples):
        phases = {name: float(np.median(ms)) for name, ms in candidate.runner.gpu_ms(feed, GPU_RUNS).items()}
        tflops = 2 * candidate.gmacs * batch / phases["compute"] if phases and candidate.gmacs else None
        p50, p90, p99 = (float(q) * 1e3 for q in np.quantile(seconds, [0.5, 0.9, 0.99]))
        base, mine = candidate.baseline, id(candidate)
        rows.append(Timing(
            candidate.runner.name, candidate.runner.label, candidate.runner.precision, batch, p50, p90, p99,
            speed[mine], len(seconds), is_stable(seconds, config.stable),
            peak_memory(candidate.path, batch, load, config.device, config.threads) if config.memory else None,
            candidate.gmacs, speed[mine] / speed[id(base)] if base else None,
            base.gmacs / candidate.gmacs if base and base.gmacs and candidate.gmacs else None, candidate.stand_in,
            streams[mine], phases or None, tflops))
    return rows


def alternate(calls: Sequence[Any], config: BenchConfig) -> list[list[float]]:
    """Seconds of each call, taken in turns until all are stable or the time is up.

    A turn is one run that is thrown away and TURN that count: the threads of the candidate before may
    still be spinning during the first.
    """
    for call in calls:
        for _ in range(config.warmup):
            call()
    samples: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + config.seconds
    while time.perf_counter() < end or len(samples[0]) < config.min_runs:
        for call, times in zip(calls, samples):
            call()
            for _ in range(TURN):
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


def peak_memory(path: str, batch: int, load: LoadConfig, device: str | None, threads: int) -> float | None:
    """MiB at the peak of a fresh process that opens `path` and runs one batch; None where unknown."""
    arguments = json.dumps([str(Path(path).resolve()), batch, load.to_dict(), device, threads])
    code = "from dyvit_deploy.bench import report_peak; report_peak()"
    done = subprocess.run([sys.executable, "-c", code, arguments], capture_output=True, text=True,
                          cwd=Path(__file__).parent.parent)
    if done.returncode != 0 or not done.stdout:
        log.warning("the memory of %s could not be measured: %s", path, done.stderr[-500:])
        return None
    return float(done.stdout.split()[-1])


def report_peak() -> None:
    """What `peak_memory` runs in the other process; writes MiB to standard output."""
    path, batch, load, device, threads = json.loads(sys.argv[1])
    config = load_for(path, LoadConfig.from_dict(load))
    with open_runner(path, load=config, device=device, threads=threads) as runner:
        runner.infer(make_feed(runner, batch, config.image_size))
    peak = peak_mib()
    if peak is not None:
        sys.stdout.write(f"{peak}\n")
