"""Measures how fast artifacts are, and how much of the speed-up expected from pruning they reach.

One call of the runtime is timed, from a float32 or uint8 batch in host memory to logits in host memory, without
decoding and preprocessing of images. On a GPU the batch is already in its memory, as in trtexec, unless transfers are
included; they are also timed separately. Candidates take turns within one run, because the speed of a machine drifts: a
ratio of two runs made at different times says little.

The expected speed-up, also its ceiling, is the ratio of multiply-accumulates, dense over pruned.
"""
from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts.facts import library_versions
from ..artifacts.files import require_source
from ..artifacts.locks import scratch_folder
from ..config import EngineRunConfig, LoadConfig
from ..data.images import Track, no_track
from ..errors import BackendError, ConfigError
from ..machine.cpu_peak import matmul_gflops
from ..machine.gpu_peak import ClockSampler, cross_check, gpu_facts, gpu_notes
from ..machine.hardware import machine, on_cpus
from ..runners.open import is_checkpoint, is_engine, load_for, open_runner
from .baselines import DenseMaker, TimedArtifact, count_gmacs, with_baselines
from .config import BenchConfig
from .process import make_feed, measure_start
from .profile import ProfileReport, profile
from .report import BenchReport, Timing
from .timing import alternate, is_stable, quantile_interval

REPORTED_LIBRARIES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy")
# Runs that are timed by GPU events, in addition to those timed by the host's clock.
GPU_RUNS = 50


def time_artifacts(artifacts: Sequence[str | Path], config: BenchConfig = BenchConfig(),
                   load: LoadConfig = LoadConfig(), track: Track[Any] = no_track,
                   make_dense: DenseMaker | None = None) -> BenchReport:
    """Times `artifacts` and their dense baselines alternately, at each batch size; `make_dense` makes missing
    baselines.

    Raises:
        ArtifactError, BackendError: an artifact cannot be opened or run.
        ConfigError: values outside their range.
    """
    with contextlib.ExitStack() as stack:
        # Before any library starts its threads.
        stack.enter_context(on_cpus(config.cpus))
        # By default, ONNX Runtime would start a thread per core of the machine.
        config = dataclasses.replace(config, threads=config.threads or len(config.cpus))
        folder = stack.enter_context(scratch_folder("bench"))

        def opened(path: str | Path, plain: bool = False) -> TimedArtifact:
            settings = load_for(path, load)
            if plain:
                # The dense model takes no keep schedule.
                settings = load_for(path, LoadConfig(image_size=load.image_size if not is_checkpoint(path) else None,
                                                     engine=dataclasses.replace(load.engine, rewrites=False),
                                                     precision=load.precision))
            runner = stack.enter_context(open_runner(path, load=settings, device=config.device, threads=config.threads))
            return TimedArtifact(runner, str(path), count_gmacs(runner.facts), load=settings)

        _check_request(artifacts, config, load)
        timeable, skip_notes = _timeable([opened(path) for path in artifacts])
        candidates, notes = with_baselines(timeable, config.baseline, folder, opened, make_dense)
        notes += skip_notes
        on_gpu = [c.runner for c in candidates if c.runner.device == "cuda"]
        gpu = gpu_facts({runner.precision for runner in on_gpu}) if on_gpu else None
        for candidate, batch in itertools.product(candidates, config.batches):
            # Checked for all before the timing starts, which may take an hour.
            candidate.runner.check_batch(batch)
        peaks = _peaks(candidates, config)
        timings: list[Timing] = []
        profiles: list[ProfileReport] = []
        for batch in track(config.batches, "timing", len(config.batches)):
            rows = _time_batch(candidates, batch, config, load, gpu, peaks)
            timings += rows
            notes += [line for c, row in zip(candidates, rows) if row.gpu_ms_p50 and c.runner.backend == "TensorRT"
                      for line in cross_check(c.runner, c.path, batch, load.engine, row.gpu_ms_p50["compute"])]
            reports, failures = _profiles(candidates, batch, config, load)
            profiles += reports
            notes += [line for line in failures if line not in notes]
        ran_on = machine()
        if gpu is None and config.transfers:
            notes.append("--transfers has no effect: nothing ran on a GPU.")
        if gpu is not None:
            notes += gpu_notes(gpu, config.transfers, len(on_gpu) < len(candidates)) + graph_notes(timings)
    notes += _peak_notes(timings, config, peaks) + faster_here(timings) + _caveats(candidates, timings, config)
    return BenchReport(tuple(timings), ran_on, library_versions(*REPORTED_LIBRARIES), config, tuple(notes), gpu, peaks,
                       tuple(profiles))


def _check_request(artifacts: Sequence[str | Path], config: BenchConfig, load: LoadConfig) -> None:
    """Raises ConfigError, before the first artifact is loaded, for options that no artifact here takes."""
    for path in artifacts:
        require_source(path)
    timed = [*artifacts, *([config.baseline] if config.baseline is not None else [])]
    engines, checkpoints = any(map(is_engine, timed)), any(map(is_checkpoint, timed))
    default = EngineRunConfig()
    changed = [f"--{name.replace('_', '-')}" for name in ("streams", "trust", "runtime_cache")
               if getattr(load.engine, name) != getattr(default, name)]
    if changed and not engines:
        raise ConfigError(f"{' and '.join(changed)} {'is' if len(changed) == 1 else 'are'} for engine plans; leave "
                          f"{'it' if len(changed) == 1 else 'them'} out.")
    if load.engine.cuda_graph and not engines and not checkpoints:
        raise ConfigError("--cuda-graph is for engine plans, and for checkpoints on a GPU; leave it out.")
    if load.precision != "float32" and not checkpoints:
        raise ConfigError("--fp16 and --bf16 are for checkpoints, and no artifact here is one; leave them out, or "
                          "lower the artifact with dyvit export.")


def graph_notes(timings: Sequence[Timing]) -> list[str]:
    """A note for each row in which a requested CUDA graph could not be captured, with the reason."""
    return [f"Batch {t.batch}: {_label(t)} ran without a CUDA graph, which could not be captured ({t.capture_error}); "
            "its time includes the host's launches." for t in timings if t.cuda_graph is False]


def _timeable(given: list[TimedArtifact]) -> tuple[list[TimedArtifact], list[str]]:
    """The artifacts that are not emulated, and a note about each other one; BackendError if all are emulated."""
    emulated = [c.runner for c in given if c.runner.emulated]
    if len(emulated) == len(given):
        first = emulated[0]
        raise BackendError(f"{first.name} is {first.precision}, which {first.backend} only emulates on a CPU, so "
                           "its time is meaningless; time the engine that TensorRT builds of it.")
    notes = [f"{runner.name} was left out: {runner.backend} only emulates {runner.precision} on a CPU."
             for runner in emulated]
    return [c for c in given if not c.runner.emulated], notes


def _caveats(candidates: Sequence[TimedArtifact], timings: Sequence[Timing], config: BenchConfig) -> list[str]:
    """Which times are not those of a deployed artifact, and whether some did not settle."""
    notes = [f"{c.runner.name} is for TensorRT: its time in {c.runner.backend} is not that of an engine."
             for c in candidates if not is_engine(c.path) and c.runner.facts
             and (c.runner.facts.lowered or {}).get("target") == "tensorrt"]
    if any(not t.stable for t in timings):
        notes.append(f"Rows marked ~ did not settle within {100 * config.stable:g}% in {config.seconds:g} s; "
                     "quiet the machine or raise --seconds.")
    return notes


def _peak_notes(timings: Sequence[Timing], config: BenchConfig, peaks: dict[str, float]) -> list[str]:
    """Notes on the peaks that were measured, and on the runtimes without a measured peak."""
    if not config.peak:
        return []
    unknown = dict.fromkeys(f"{t.backend} in {t.precision}" for t in timings if t.peak_share is None)
    known = ", ".join(f"{gflops:.0f} GFLOP/s ({kind})" for kind, gflops in peaks.items())
    return [f"No peak is measured through {kind}." for kind in unknown] + (
        [f"Matrix-product peaks of this machine, measured in this run: {known}."] if known else [])


def _peaks(candidates: Sequence[TimedArtifact], config: BenchConfig) -> dict[str, float]:
    """GFLOP/s of the CPU's matrix products for every runtime and precision among `candidates`."""
    kinds = dict.fromkeys((c.runner.backend, c.runner.precision) for c in candidates if c.runner.device == "cpu")
    peaks = {f"{backend} {precision}": matmul_gflops(backend, precision, config.threads)
             for backend, precision in kinds if config.peak}
    return {kind: gflops for kind, gflops in peaks.items() if gflops}


def _profiles(candidates: Sequence[TimedArtifact], batch: int, config: BenchConfig,
              load: LoadConfig) -> tuple[list[ProfileReport], list[str]]:
    """The profile of each artifact, and a note for each artifact whose runtime has no profiler."""
    reports, notes = [], []
    for candidate in candidates if config.profile else ():
        try:
            reports.append(profile(candidate.runner, batch, load.image_size))
        except BackendError as error:
            notes.append(str(error))
    return reports, notes


def faster_here(timings: Sequence[Timing]) -> list[str]:
    """Notes on the fastest precision at each batch size on this machine, and on lower precisions that are not faster.

    Only artifacts of the same cost (`gmacs`), so of the same model and schedule, are compared.
    """
    notes = []
    for batch, gmacs in dict.fromkeys((t.batch, t.gmacs) for t in timings):
        rows = sorted((t for t in timings if (t.batch, t.gmacs, t.stand_in) == (batch, gmacs, False)),
                      key=lambda t: -t.images_per_sec)
        if len({t.precision for t in rows}) > 1:
            ratio = rows[0].images_per_sec / rows[1].images_per_sec
            notes.append(f"Batch {batch}: {_label(rows[0])} is the fastest here, {ratio:.2f}x {_label(rows[1])}.")
        for lower in (t for t in rows if t.precision != "float32"):
            faster = [t for t in rows if (t.backend, t.precision) == (lower.backend, "float32")
                      and t.images_per_sec >= lower.images_per_sec]
            notes += [f"Batch {batch}: {_label(lower)} is NOT faster than {_label(t)} here: "
                      f"{lower.images_per_sec / t.images_per_sec:.2f}x." for t in faster]
            if lower.speedup is not None and lower.speedup < 1 and not faster:
                notes.append(f"Batch {batch}: {_label(lower)} is NOT faster than its baseline: {lower.speedup:.2f}x.")
    return notes


def _label(timing: Timing) -> str:
    return f"{timing.artifact} ({timing.precision}, {timing.backend})"


def _time_batch(candidates: Sequence[TimedArtifact], batch: int, config: BenchConfig, load: LoadConfig,
                gpu: dict[str, Any] | None, peaks: dict[str, float]) -> list[Timing]:
    feeds = [make_feed(c.runner, batch, load.image_size) for c in candidates]
    calls = [c.runner.timed_call(f, config.transfers) for c, f in zip(candidates, feeds)]
    with contextlib.ExitStack() as stack:
        clocks = stack.enter_context(ClockSampler()) if gpu is not None else None
        samples = alternate(calls, config)
    if gpu is not None and clocks is not None:
        gpu["clocks"].append(clocks.summary())
    streams = {id(c): load.engine.streams if is_engine(c.path) else 1 for c in candidates}
    # Images per second.
    speed = {id(c): streams[id(c)] * batch / float(np.median(s)) for c, s in zip(candidates, samples)}
    rows = []
    for candidate, feed, seconds in zip(candidates, feeds, samples):
        phases = {name: float(np.median(ms)) for name, ms in candidate.runner.gpu_ms(feed, GPU_RUNS).items()}
        tflops = 2 * candidate.gmacs * batch / phases["compute"] if phases and candidate.gmacs else None
        p50, p90, p99 = (float(q) * 1e3 for q in np.quantile(seconds, [0.5, 0.9, 0.99]))
        base, twin, key = candidate.baseline, candidate.rewritten, id(candidate)
        start = (measure_start(candidate.path, batch, candidate.load, config.device, config.threads)
                 if config.memory else None)
        gflops = 2 * candidate.gmacs * speed[key] if candidate.gmacs else None
        peak = peaks.get(f"{candidate.runner.backend} {candidate.runner.precision}")
        rows.append(Timing(
            artifact=candidate.runner.name, backend=candidate.runner.label, precision=candidate.runner.precision,
            batch=batch, latency_ms_p50=p50, latency_ms_p90=p90, latency_ms_p99=p99,
            ci95_ms={name: _ms(quantile_interval(seconds, q))
                     for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))},
            images_per_sec=speed[key], runs=len(seconds), stable=is_stable(seconds, config.stable),
            peak_rss_mib=start.peak_rss_mib if start else None, load_ms=start.load_ms if start else None,
            first_ms=start.first_ms if start else None,
            gmacs=candidate.gmacs, speedup=speed[key] / speed[id(base)] if base else None,
            speedup_rewritten=speed[key] / speed[id(twin)] if twin else None,
            ceiling=base.gmacs / candidate.gmacs if base and base.gmacs and candidate.gmacs else None,
            stand_in=candidate.stand_in, streams=streams[key], gpu_ms_p50=phases or None, tflops=tflops,
            gflops=gflops,
            cuda_graph=candidate.runner.cuda_graph, capture_error=candidate.runner.capture_error,
            peak_share=gflops / peak if gflops and peak else None))
    return rows


def _ms(seconds: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    low, high = (None if value is None else value * 1e3 for value in seconds)
    return low, high
