#!/usr/bin/env python3
"""What pruning gains on a GPU, in every runtime that is here: the figures of the README's GPU table.

    python benchmarks/gpu.py                                        everything that fits into 8 minutes
    python benchmarks/gpu.py --device cpu --quick -o trial.json     a rehearsal without a GPU

What is timed: one call on a batch that lies on the GPU already, until the GPU is done. Dense and pruned take turns
in one loop, because clocks drift with heat; their ratio stands beside the ceiling, the ratio of multiply-accumulates.
Compute is the time between two events on the GPU around the call, gaps between kernels included; TFLOP/s are of that,
to be held against the peak of matrix products in the same run. Weights are random: time does not depend on them.
Float32 is without TF32. Float16 is model.half() in PyTorch, predictors included; in graphs the keep scores, the input
and the logits stay float32. Pruned graphs also give their kept tokens, so that the artifact that is timed is the one
that is compared with float32 PyTorch, on noise. Random weights score tokens nearly alike: the hardest case.

Nothing optional must be there: what is missing, refused, failed or did not fit is named in the result, which is
written after every configuration. A source tree that is not installed needs PYTHONPATH=. before the command.
"""
from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import datetime
import functools
import gc
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from speed import RESULTS, random_checkpoint
from tables import GPU_BATCHES

import dyvit_deploy as dv
from dyvit_deploy import zoo
from dyvit_deploy.artifacts import check_target, library_versions, write_json
from dyvit_deploy.bench import run as bench, timing
from dyvit_deploy.config import default_stages
from dyvit_deploy.engine.flavours import FLAVOURS, open_door
from dyvit_deploy.errors import BackendError, MissingDependency, reason
from dyvit_deploy.export.precision import to_half
from dyvit_deploy.gpu_peak import gpu_facts
from dyvit_deploy.graph import graph_facts, load_graph, on_score_path, set_facts
from dyvit_deploy.machine import gpu_clocks, machine
from dyvit_deploy.model.macs import count_costs
from dyvit_deploy.optional import require
from dyvit_deploy.runners.ort import PROVIDER_OPTIONS, PROVIDERS, cuda_works

PRUNED = 0.7                                # keep ratio; 1.0 is dense
EAGER, COMPILED, ORT = "PyTorch eager", "PyTorch compiled", "ONNX Runtime"
FORMATS = {flavour.name: flavour.format for flavour in FLAVOURS.values()}
EVENT_RUNS, PARITY_IMAGES, CAST_IMAGES = 10, 32, 4
MORE = ("timm", "onnx", "onnxscript", "triton", "nvidia-modelopt", "tensorrt", "tensorrt-rtx")


class Job(NamedTuple):
    """One configuration, timed dense and pruned."""

    backend: str
    precision: str
    model: str
    batch: int


PROBE = Job("", "float32", "digits-s", 1)   # shows whether a backend works here at all


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to measure; one configuration is timed for `seconds` at most."""

    models: tuple[str, ...] = ("deit-s", "deit-b", "lvvit-s")
    batches: tuple[int, ...] = (1, 8, 32, 128, 256)
    precisions: tuple[str, ...] = ("float16", "float32")
    seconds: float = 2.0

    def jobs(self, backends: list[str]) -> list[Job]:
        """The most telling first: PyTorch as it is, which is quick, then the batches of the README."""
        jobs = [Job(backend, precision, model, batch) for model, precision, backend, batch
                in itertools.product(self.models, self.precisions, backends, self.batches)]
        return sorted(jobs, key=lambda job: (job.backend != EAGER, job.batch not in GPU_BATCHES))

    @property
    def profiles(self) -> tuple[dv.BatchProfile, ...]:
        """Engines are tuned for the README's batches, and take all others up to the largest."""
        tops = [batch for batch in self.batches if batch in GPU_BATCHES or batch == max(self.batches)]
        return tuple(dv.BatchProfile(low + 1, top, top, f"up-to-{top}") for low, top in zip([0, *tops], tops))


QUICK = Plan(("digits-s",), (1, 2), ("float32",), 0.3)


@dataclasses.dataclass
class Workshop:
    """Makes checkpoints, graphs and engines in `folder`, each once; what failed once fails again at once."""

    folder: Path
    device: str
    profiles: tuple[dv.BatchProfile, ...]
    float16_graph_by: str | None = None
    failed: dict[Path, Exception] = dataclasses.field(default_factory=dict)

    def once(self, name: str, make: Callable[[Path], Any]) -> Path:
        path = self.folder / name
        if path in self.failed:
            raise copy.copy(self.failed[path])
        try:
            if not path.exists():
                make(path)
        except Exception as error:
            self.failed[path] = copy.copy(error)                           # without its frames, which hold memory
            raise
        return path

    def checkpoint(self, model: str, ratio: float) -> Path:
        folder = self.folder / str(ratio)
        folder.mkdir(exist_ok=True)
        path = folder / f"{model}.safetensors"
        return path if path.exists() else random_checkpoint(model, ratio, folder)

    def graph(self, job: Job, ratio: float) -> Path:
        def make(path: Path) -> None:
            if job.precision == "float16":
                self._to_half(self.graph(job._replace(precision="float32"), ratio), path)
            else:
                dv.export_onnx(self.checkpoint(job.model, ratio), path, dv.ExportConfig(with_tokens=ratio == PRUNED))
        return self.once(f"{job.model}-{ratio}-{job.precision}.onnx", make)

    def _to_half(self, graph: Path, path: Path) -> None:
        proto = load_graph(graph)
        facts: Any = graph_facts(proto, str(graph))
        try:
            proto = to_half(graph, "float16", dv.open_images(None, facts.model, limit=CAST_IMAGES))
            self.float16_graph_by = "ModelOpt"
        except MissingDependency:
            scores = [node.name for node in proto.graph.node if on_score_path(node.name)]
            convert = require("onnxruntime.transformers.float16").convert_float_to_float16
            proto = convert(proto, keep_io_types=True, node_block_list=scores)
            del proto.graph.value_info[:]                                  # they tell the types of before
            self.float16_graph_by = "onnxruntime.transformers"
        set_facts(proto, dataclasses.replace(facts, precision="float16", lowered={"target": "tensorrt"}))
        require("onnx").save(proto, str(path))

    def artifact(self, job: Job, ratio: float) -> Path:
        """The engine, or the graph for ONNX Runtime."""
        if job.backend not in FORMATS:
            return self.graph(job, ratio)
        format, graph = FORMATS[job.backend], self.graph(job, ratio)
        return self.once(f"{graph.stem}-{format}.plan",
                         lambda path: dv.build_engine(graph, path, format, dv.BuildConfig(self.profiles)))


class Timed(NamedTuple):
    """One model with its batch: `call` runs it and waits, `compute_ms` are times by events, where there are any."""

    call: Callable[[], Any]
    compute_ms: Callable[[], list[float]] = list


@functools.cache
def loaded(checkpoint: Path) -> Any:
    """The model in main memory; a dense one without the bookkeeping of stages that drop nothing."""
    model, facts = dv.load_model(checkpoint)
    if facts.dense:
        model.stage_of.clear()
    return model


@functools.lru_cache(maxsize=1)
def noise(model: str, batch: int) -> Any:
    return np.random.default_rng(0).standard_normal((batch, 3, *zoo.get(model).image_size), dtype=np.float32)


def open_pytorch(shop: Workshop, job: Job, ratio: float, stack: contextlib.ExitStack) -> Timed:
    gpu = shop.device == "cuda"
    model = copy.deepcopy(loaded(shop.checkpoint(job.model, ratio))).to(shop.device)
    images = torch.from_numpy(noise(job.model, job.batch)).to(shop.device)
    if job.precision == "float16":
        model, images = model.half(), images.half()
    if job.backend == COMPILED:
        torch.compiler.reset()                                             # else the ninth model would run uncompiled
        # Compiling for a CPU takes a minute, and nobody reads a rehearsal's figures.
        model = torch.compile(model, dynamic=False, fullgraph=True, backend="inductor" if gpu else "eager")

    @torch.inference_mode()
    def call() -> None:
        model(images)
        if gpu:
            torch.cuda.synchronize()

    @torch.inference_mode()
    def compute_ms() -> list[float]:
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(EVENT_RUNS if gpu else 0)]
        for before, after in pairs:
            before.record()
            model(images)
            after.record()
            after.synchronize()
        return [before.elapsed_time(after) for before, after in pairs]
    return Timed(call, compute_ms)


def open_ort(shop: Workshop, job: Job, ratio: float, stack: contextlib.ExitStack) -> Timed:
    ort = require("onnxruntime")
    # OrtRunner takes host memory; a binding leaves batch and outputs on the GPU.
    session = ort.InferenceSession(str(shop.artifact(job, ratio)),
                                   providers=[(PROVIDERS[shop.device], PROVIDER_OPTIONS[shop.device])])
    binding = session.io_binding()
    binding.bind_ortvalue_input("images", ort.OrtValue.ortvalue_from_numpy(noise(job.model, job.batch), shop.device, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, shop.device)

    def call() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
    return Timed(call)


def open_engine(shop: Workshop, job: Job, ratio: float, stack: contextlib.ExitStack) -> Timed:
    runner = stack.enter_context(dv.open_runner(shop.artifact(job, ratio)))
    feed = noise(job.model, job.batch)
    return Timed(runner.timed_call(feed, transfers=False), lambda: runner.gpu_ms(feed, EVENT_RUNS)["compute"])


OPEN = {EAGER: open_pytorch, COMPILED: open_pytorch, ORT: open_ort} | dict.fromkeys(FORMATS, open_engine)


def working_backends(shop: Workshop, result: dict[str, Any]) -> list[str]:
    """Those that run the smallest model; the others go to `missing` or `refused`."""
    working = []
    for backend, opened in OPEN.items():
        kind = "missing"
        try:
            if backend in FORMATS:
                open_door(FORMATS[backend])
            elif backend == ORT and shop.device == "cuda" and not cuda_works():
                raise BackendError("ONNX Runtime finds no working CUDA here; install onnxruntime-gpu, its CUDA "
                                   "libraries and the NVIDIA driver.")
            kind = "refused"
            with contextlib.ExitStack() as stack:
                opened(shop, PROBE._replace(backend=backend), PRUNED, stack).call()
            working.append(backend)
        except Exception as error:                                         # libraries fail in classes of their own
            kind = "missing" if isinstance(error, (MissingDependency, ImportError)) else kind
            result[kind].append({"backend": backend, "reason": why(error)})
            say(f"{backend} is {kind}: {why(error)}")
    return working


def why(error: Exception) -> str:
    return str(error) if isinstance(error, dv.DyvitError) else f"{type(error).__name__}: {reason(error)}"


@functools.cache
def gmacs(model: str) -> list[float]:
    """Of one image, dense and pruned."""
    config = zoo.get(model)
    schedules = [None, dv.PruneConfig.from_ratio(PRUNED, default_stages(config.depth))]
    return [cost.gmacs for cost in count_costs(config, schedules)]


def measure(shop: Workshop, job: Job, seconds: float) -> dict[str, Any]:
    """One row: both models timed in turns, then by events."""
    config = dv.BenchConfig(seconds=seconds)
    with contextlib.ExitStack() as stack:
        pair = [OPEN[job.backend](shop, job, ratio, stack) for ratio in (1.0, PRUNED)]
        samples = timing.alternate([timed.call for timed in pair], config)
        events = [timed.compute_ms() for timed in pair]
    sides, costs = [], gmacs(job.model)
    for times, by_events, cost in zip(samples, events, costs):
        p50, p90, p99 = (float(q) * 1e3 for q in np.quantile(times, [0.5, 0.9, 0.99]))
        compute = statistics.median(by_events) if by_events else None
        sides.append({"latency_ms_p50": p50, "latency_ms_p90": p90, "latency_ms_p99": p99,
                      "images_per_sec": job.batch / p50 * 1e3, "runs": len(times),
                      "stable": timing.is_stable(times, config.stable), "gmacs": cost, "compute_ms_p50": compute,
                      "tflops": 2 * cost * job.batch / compute if compute else None})
    dense, pruned = sides
    return {**job._asdict(), "keep_ratio": PRUNED, "speedup": dense["latency_ms_p50"] / pruned["latency_ms_p50"],
            "ceiling": costs[0] / costs[1], "dense": dense, "pruned": pruned}


def compare(shop: Workshop, job: Job) -> list[dict[str, Any]]:
    """The pruned artifact against float32 PyTorch on noise, in two of an engine's profiles."""
    device = None if job.backend in FORMATS else shop.device               # engines know theirs
    config = dv.CheckConfig(PARITY_IMAGES, tuple(profile.opt for profile in shop.profiles[:2]), device=device)
    report = dv.check_artifacts(shop.checkpoint(job.model, PRUNED), shop.artifact(job, PRUNED), config=config)
    return [{**job._asdict(), "passed": not batch.failures, **dataclasses.asdict(batch)} for batch in report.batches]


def go_through(shop: Workshop, jobs: list[Job], plan: Plan, end: float, result: dict[str, Any],
               save: Callable[[], None]) -> None:
    """Fills `result`. A job is skipped when there is less time left than the last one of its backend took, because
    nothing that has begun is cut short."""
    took: dict[str, float] = {}
    compared = {job[:3] for job in jobs if job.backend in (EAGER, COMPILED)}
    for job in jobs:
        began, name = time.perf_counter(), "{}, {}, {}, batch {}".format(*job)
        if began + took.get(job.backend, 0.0) > end:
            continue
        try:
            gc.collect()                                                   # of the memory of the job before
            torch.cuda.empty_cache()
            row = measure(shop, job, plan.seconds) | {"clocks": gpu_clocks() if shop.device == "cuda" else None}
            result["rows"].append(row)
            say(f"{name}: {row['dense']['images_per_sec']:.1f} -> {row['pruned']['images_per_sec']:.1f} images/s, "
                f"{row['speedup']:.2f}x where {row['ceiling']:.2f}x is the ceiling")
            if job[:3] not in compared:
                compared.add(job[:3])
                result["parity"] += compare(shop, job)
        except Exception as error:                                         # one configuration must not stop the run
            result["failed"].append({**job._asdict(), "reason": why(error)})
            say(f"{name} failed: {why(error)}")
        took[job.backend] = time.perf_counter() - began
        save()


def run(plan: Plan, device: str, minutes: float, path: Path) -> dict[str, Any]:
    """Measures, and writes what there is after every configuration."""
    end = time.perf_counter() + 60 * minutes
    gpu = gpu_facts(plan.precisions) if device == "cuda" else {"matmul_peak_tflops": None}
    result: dict[str, Any] = {
        "machine": machine(), "versions": library_versions(*bench.LIBRARIES, *MORE) | driver(), "device": device,
        "config": {**dataclasses.asdict(plan), "keep_ratio": PRUNED, "minutes": minutes, "tf32": False,
                   "pytorch_float16_by": "model.half()"},
        "started": now(), "finished": None, "interrupted": False, "gpu": gpu,
        "float16_graph_by": None, "rows": [], "parity": [], "missing": [], "refused": [], "failed": [], "left_out": []}
    jobs: list[Job] = []
    with tempfile.TemporaryDirectory(prefix="dyvit-gpu-") as name:
        shop = Workshop(Path(name), device, plan.profiles)

        def save() -> None:
            tried = {tuple(entry[field] for field in Job._fields) for entry in result["rows"] + result["failed"]}
            result["left_out"] = [job._asdict() for job in jobs if job not in tried]
            result["float16_graph_by"] = shop.float16_graph_by
            write_json(path, result)

        try:
            jobs += plan.jobs(working_backends(shop, result))
            go_through(shop, jobs, plan, end, result, save)
        except KeyboardInterrupt:
            result["interrupted"] = True
        result["finished"] = now()
        save()
    say(f"{len(result['rows'])} rows, {len(result['failed'])} failed, {len(result['left_out'])} left out: {path}")
    return result


def driver() -> dict[str, str]:
    """The versions of the GPU's driver and of PyTorch's CUDA."""
    versions = {"cuda": torch.version.cuda} if torch.version.cuda else {}
    with contextlib.suppress(OSError, subprocess.SubprocessError):         # a machine without the tool
        ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        versions["driver"] = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return versions


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def say(text: str) -> None:
    print(f"{now()[11:19]} {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", choices=PROVIDERS, default="cuda")
    parser.add_argument("--quick", action="store_true", help="the smallest model, fractions of a second each")
    parser.add_argument("-o", "--output", type=Path, help="default: benchmarks/results/gpu-NAME.json")
    options = parser.parse_args()
    if options.output is None and (options.quick or options.device == "cpu"):
        parser.error("a rehearsal does not belong into benchmarks/results; say with -o where to write it")
    if options.device == "cpu":
        torch.set_num_threads(1)                                           # else other work on the machine stalls it
    elif not torch.cuda.is_available():
        sys.exit("No NVIDIA GPU with a driver works here; rehearse with --device cpu --quick -o FILE.")
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"                               # for all of NVIDIA's libraries
    torch.backends.cudnn.allow_tf32 = False                                # PyTorch's own default is True
    try:
        slug = re.sub(r"[^a-z0-9]+", "-", str(machine()["gpu"]).lower())
        path = check_target(options.output or RESULTS / f"gpu-{slug}.json")
        result = run(QUICK if options.quick else Plan(), options.device, options.minutes, path)
    except dv.DyvitError as error:
        sys.exit(str(error))
    sys.exit(130 if result["interrupted"] else 0 if result["rows"] else 1)


if __name__ == "__main__":
    main()
