"""The timings of benchmarks/gpu.py: one function per part, which turns a job into the fields of its row."""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from speed import random_checkpoint
from standins import HostCuda

import dyvit_deploy as dv
from dyvit_deploy.artifacts.facts import ArtifactFacts
from dyvit_deploy.bench import timing
from dyvit_deploy.bench.baselines import count_gmacs
from dyvit_deploy.calibration.half import to_half
from dyvit_deploy.config import default_stages
from dyvit_deploy.errors import MissingDependency
from dyvit_deploy.export.config import FASTER_GATHER
from dyvit_deploy.graph.names import on_score_path
from dyvit_deploy.graph.read import graph_facts, load_graph, set_facts
from dyvit_deploy.machine.gpu_peak import SIDE as PRODUCT_SIDE, ClockSampler, copy_gb_per_s, matmul_tflops
from dyvit_deploy.model import zoo
from dyvit_deploy.model.dynamicvit import DynamicViT
from dyvit_deploy.model.forms import inference_form
from dyvit_deploy.optional import installed, require
from dyvit_deploy.runners.base import Runner
from dyvit_deploy.runners.cuda import Cuda
from dyvit_deploy.runners.pytorch import PyTorchRunner

# Keep ratio; 1.0 is dense.
PRUNED = 0.7
EVENT_RUNS, CAST_IMAGES = 20, 4
# Largest interval of a settled median, as a share of it, and the share of a row's seconds for warming up the clocks.
STABLE, WARM_UP = 0.02, 0.3
DEMO = Path(dv.__file__).parent / "demo"
FORMATS = {"TensorRT for RTX": "rtx", "TensorRT": "trt"}


class Job(NamedTuple):
    """One row to measure; fields that a part does not use are empty."""

    part: str
    backend: str = ""
    precision: str = ""
    model: str = ""
    batch: int = 0

    def __str__(self) -> str:
        return ", ".join([*(name for name in self[:4] if name), *([f"batch {self.batch}"] if self.batch else [])])


@dataclasses.dataclass
class Bench:
    """Where and how to measure: on `device`, `seconds` per row; graphs and engines are made once, in `folder`."""

    device: str
    seconds: float
    folder: Path
    batches: tuple[int, ...]
    quick: bool = False
    float16_graph_by: str | None = None
    compared: set[str] = dataclasses.field(default_factory=set)

    @property
    def profiles(self) -> tuple[dv.BatchProfile, ...]:
        """The profiles of engines: tuned for each batch size, and covering those between."""
        tops = sorted(self.batches)
        return tuple(dv.BatchProfile(low + 1, top, top, f"up-to-{top}") for low, top in zip([0, *tops], tops))

    def checkpoint(self, model: str, ratio: float) -> Path:
        """The demo checkpoints, which are trained, or random weights."""
        if model == "digits-s":
            return DEMO / ("digits-s.safetensors" if ratio == PRUNED else "digits-s-dense.safetensors")
        folder = self.folder / str(ratio)
        folder.mkdir(exist_ok=True)
        path = folder / f"{model}.safetensors"
        return path if path.exists() else random_checkpoint(model, ratio, folder)

    def graph(self, job: Job, ratio: float, rewritten: bool) -> Path:
        """The graph that `dyvit export` writes for this backend; without rewrites if `rewritten` is
        False."""
        path = self.folder / f"{job.model}-{job.part}-{ratio}-{rewritten}-{job.precision}.onnx"
        if path.exists():
            return path
        if job.precision == "float16":
            self._to_half(self.graph(job._replace(precision="float32"), ratio, rewritten), path)
        else:
            gather = FASTER_GATHER["tensorrt" if job.backend in FORMATS else "cpu"]
            config = dv.ExportConfig(with_tokens=ratio == PRUNED, gather=gather, without=() if rewritten else ("all",))
            dv.export_onnx(self.checkpoint(job.model, ratio), path, config)
        return path

    def artifact(self, job: Job, ratio: float, rewritten: bool) -> Path:
        """The engine, or the graph for ONNX Runtime."""
        graph = self.graph(job, ratio, rewritten)
        if job.backend not in FORMATS:
            return graph
        plan = graph.with_suffix(f".{FORMATS[job.backend]}.plan")
        if not plan.exists():
            dv.build_engine(graph, plan, FORMATS[job.backend], dv.BuildConfig(self.profiles))
        return plan

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
            # They still have the types before the conversion.
            del proto.graph.value_info[:]
            self.float16_graph_by = "onnxruntime.transformers"
        set_facts(proto, dataclasses.replace(facts, precision="float16", lowered={"target": "tensorrt"}))
        require("onnx").save(proto, str(path))


def measure_peak(bench: Bench, job: Job) -> dict[str, Any]:
    """The rate of matrix products in one precision, or of copies; on a CPU a small product, so that the code runs."""
    if bench.device == "cpu":
        a = torch.randn(256, 256)
        started = time.perf_counter()
        for _ in range(10):
            a @ a if job.precision else a.clone()
        seconds = (time.perf_counter() - started) / 10
        moved = {"copy_gb_per_s": 2e-9 * a.nbytes / seconds}
        return {"tflops": 2 * 256 ** 3 / seconds / 1e12} if job.precision else moved
    with ClockSampler() as clocks:
        if job.precision:
            found = {"tflops": matmul_tflops(job.precision), "side": PRODUCT_SIDE}
        else:
            found = {"copy_gb_per_s": copy_gb_per_s()}
    return found | {"clocks": clocks.summary()}


@contextlib.contextmanager
def open_torch(bench: Bench, job: Job, model: Any, facts: ArtifactFacts, graph: bool) -> Iterator[PyTorchRunner]:
    """The package's runner of `model`, on the device and in the precision of the job."""
    model = model.eval().to(bench.device, getattr(torch, job.precision))
    cuda: Any = Cuda() if bench.device == "cuda" else HostCuda()
    with PyTorchRunner(model, facts, graph=graph, cuda=cuda) as runner:
        yield runner


class Side(NamedTuple):
    """One model of a row: its runner, and the multiply-accumulates of one image in 1e9."""

    runner: Runner
    gmacs: float


@contextlib.contextmanager
def open_sides(bench: Bench, job: Job) -> Iterator[dict[str, Side]]:
    """Dense without rewrites; dense with the rewrites of the pruned graph, where the backend has any; pruned."""
    with contextlib.ExitStack() as stack:
        sides: dict[str, Side] = {}
        for name, ratio, rewritten in (("dense", 1.0, False), ("dense_rewritten", 1.0, True), ("pruned", PRUNED, True)):
            if job.backend == "PyTorch eager":
                # Eager PyTorch runs the model without rewrites.
                rewritten = False
                if name == "dense_rewritten":
                    continue
            if job.backend.startswith("PyTorch"):
                runner: Runner = stack.enter_context(_random_torch(bench, job, ratio, rewritten))
            else:
                runner = stack.enter_context(_open_artifact(bench, job, ratio, rewritten))
            gmacs = count_gmacs(runner.facts)
            assert gmacs is not None
            sides[name] = Side(runner, gmacs)
        yield sides


@contextlib.contextmanager
def _random_torch(bench: Bench, job: Job, ratio: float, rewritten: bool) -> Iterator[Runner]:
    """A model of the zoo with random weights, created on the device."""
    config = zoo.get(job.model)
    prune = None if ratio == 1.0 else dv.PruneConfig.from_ratio(ratio, default_stages(config.depth))
    torch.manual_seed(0)
    with torch.device(bench.device):
        model: Any = DynamicViT(config, prune)
    facts = ArtifactFacts(config, prune)
    if rewritten:
        model, forms = inference_form(model, fused_attention=True)
        facts = dataclasses.replace(facts, forms=forms)
    if job.backend == "PyTorch compiled":
        # Otherwise the ninth model would run uncompiled.
        torch.compiler.reset()
        # Compiling for a CPU takes a minute, and a rehearsal does not need it.
        model = model.eval().to(bench.device, getattr(torch, job.precision))
        model.forward = torch.compile(model.forward, dynamic=False, fullgraph=True,
                                      backend="inductor" if bench.device == "cuda" else "eager")
    with open_torch(bench, job, model, facts, graph=job.backend != "PyTorch eager") as runner:
        yield runner


def _open_artifact(bench: Bench, job: Job, ratio: float, rewritten: bool) -> Runner:
    path = bench.artifact(job, ratio, rewritten)
    if job.backend not in FORMATS:
        return dv.open_runner(path, device=bench.device)
    return dv.open_runner(path, load=dv.LoadConfig(engine=dv.EngineRunConfig(cuda_graph=True)))


@functools.lru_cache(maxsize=1)
def noise(model: str, batch: int) -> Any:
    return np.random.default_rng(0).standard_normal((batch, 3, *zoo.get(model).image_size), dtype=np.float32)


def time_sides(bench: Bench, job: Job) -> dict[str, Any]:
    """Times the models of a row in turns within one loop, because clocks drift with heat, then by events on the GPU."""
    # A loop that stopped once stable would end before the clocks are sampled, so this one uses an unreachable bound.
    config = dv.BenchConfig(seconds=bench.seconds, min_runs=10, stable=1e-9)
    feed = noise(job.model, job.batch)
    with open_sides(bench, job) as sides:
        calls = [side.runner.timed_call(feed, transfers=False) for side in sides.values()]
        timing.alternate(calls, dataclasses.replace(config, seconds=WARM_UP * bench.seconds, min_runs=1))
        with contextlib.ExitStack() as stack:
            clocks = stack.enter_context(ClockSampler()) if bench.device == "cuda" else None
            samples = timing.alternate(calls, config)
        found = {name: _timed(side, times, job.batch, STABLE, feed)
                 for (name, side), times in zip(sides.items(), samples)}
        checks = _compare_artifacts(bench, job)
        captured = [side.runner.cuda_graph for side in sides.values()]
        graphs = {"cuda_graph": None if captured[-1] is None else all(captured),
                  "capture_error": "; ".join(side.runner.capture_error for side in sides.values()
                                             if side.runner.capture_error),
                  "forms": list(sides["pruned"].runner.facts.forms)}  # type: ignore[union-attr]
    dense, pruned = found["dense"], found["pruned"]
    alike = found.get("dense_rewritten", dense)
    return {**found, **graphs, "parity": checks, "keep_ratio": PRUNED, "clocks": clocks.summary() if clocks else None,
            "speedup": dense["latency_ms_p50"] / pruned["latency_ms_p50"], "ceiling": dense["gmacs"] / pruned["gmacs"],
            "speedup_same_rewrites": alike["latency_ms_p50"] / pruned["latency_ms_p50"],
            "ceiling_same_rewrites": alike["gmacs"] / pruned["gmacs"]}


def _timed(side: Side, times: list[float], batch: int, stable: float, feed: Any) -> dict[str, Any]:
    p50, p90, p99 = (float(q) * 1e3 for q in np.quantile(times, [0.5, 0.9, 0.99]))
    events = side.runner.gpu_ms(feed, EVENT_RUNS)
    compute = statistics.median(events["compute"]) if events else None
    return {"latency_ms_p50": p50, "latency_ms_p90": p90, "latency_ms_p99": p99, "images_per_sec": batch / p50 * 1e3,
            "runs": len(times), "stable": timing.is_stable(times, stable), "gmacs": side.gmacs,
            "compute_ms_p50": compute, "tflops": 2 * side.gmacs * batch / compute if compute else None}


def _compare_artifacts(bench: Bench, job: Job) -> list[dict[str, Any]]:
    """The demo student, made in the same way, against float32 PyTorch, once per backend: the keep scores of random
    weights are nearly ties, which no two runtimes break alike. Checkpoints are the reference themselves."""
    if job.backend.startswith("PyTorch") or job.part in bench.compared:
        return []
    bench.compared.add(job.part)
    job, data = job._replace(model="digits-s"), "digits" if installed("sklearn") else None
    if data is None and job.precision != "float32":
        # On noise, its scores are nearly ties, too.
        return []
    config = dv.CheckConfig(64, (1, 8), device=None if job.backend in FORMATS else bench.device)
    report = dv.check_artifacts(bench.checkpoint(job.model, PRUNED), bench.artifact(job, PRUNED, True), data, config)
    return [{"passed": not batch.failures, **dataclasses.asdict(batch)} for batch in report.batches]


def profile_kernels(bench: Bench, job: Job) -> dict[str, Any]:
    """The kernels of an eager run, dense and pruned, by PyTorch's profiler, the costliest first."""
    gpu = bench.device == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if gpu else torch.profiler.ProfilerActivity.CPU
    found: dict[str, Any] = {}
    feed = noise(job.model, job.batch)
    for name, ratio in (("dense", 1.0), ("pruned", PRUNED)):
        with _random_torch(bench, job, ratio, rewritten=False) as runner:
            call = runner.timed_call(feed, transfers=False)
            for _ in range(3):
                call()
            with torch.profiler.profile(activities=[activity]) as profiler:
                call()
        own = "self_device_time_total" if gpu else "self_cpu_time_total"
        times = sorted(((getattr(event, own) / 1e3, event.count, event.key) for event in profiler.key_averages()
                        if getattr(event, own)), reverse=True)
        found[name] = {"kernels": sum(count for _, count, _ in times), "ms": sum(ms for ms, _, _ in times),
                       "costliest": [{"ms": ms, "count": count, "name": key[:120]}
                                     for ms, count, key in itertools.islice(times, 14)]}
    return found
