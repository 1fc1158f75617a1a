"""The checks that benchmarks/gpu.py makes on the card: PyTorch against the CPU, GpuStream, and training."""
from __future__ import annotations

import contextlib
import copy
import math
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import torch
from gpu_parts import DEMO, EVENT_RUNS, Bench, Job, open_torch
from standins import CLASSES, KEPT, PROFILES, SIDE, HostCuda, TorchContext, profile_for

import dyvit_deploy as dv
from dyvit_deploy.model.forms import inference_form
from dyvit_deploy.optional import require
from dyvit_deploy.runners.base import TensorSpec
from dyvit_deploy.runners.cuda import Cuda
from dyvit_deploy.runners.gpu_stream import GpuStream
from dyvit_deploy.runners.pytorch import PyTorchRunner
from dyvit_deploy.runners.tensorrt import EngineProgram

PARITY_IMAGES, STREAM_REPEATS = 64, 200
TRAIN_STEPS, TRAIN_WARM_UP = 30, 10
# Largest error of a float32 logit against the CPU, and of a replayed graph against eager; largest relative error of the
# logits of a stream.
CPU_TOLERANCE, EAGER_TOLERANCE, STREAM_TOLERANCE = 1e-3, 1e-5, 1e-5


def check_pytorch(bench: Bench, job: Job) -> dict[str, Any]:
    """The demo student on this device, eager or replayed, against eager float32 on the CPU; the graph in float32 also
    against eager on this device, where 1e-5 is the bound."""
    model, facts = dv.load_model(DEMO / "digits-s.safetensors")
    shape = (PARITY_IMAGES, 3, *facts.model.image_size)
    feed = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    reference = PyTorchRunner(model, facts).infer(feed)
    graph = job.backend == "CUDA graph"
    deployed = inference_form(model, fused_attention=True)[0] if graph else copy.deepcopy(model)
    with open_torch(bench, job, deployed, facts, graph) as runner:
        found = runner.infer(feed)
        same = found.logits.argmax(1) == reference.logits.argmax(1)
        fields: dict[str, Any] = {"images": len(feed), "max_error": _distance(found.logits, reference.logits),
                                  "top1_agreement": float(same.mean())}
        if graph:
            eager = PyTorchRunner(runner.model, facts, cuda=runner._cuda)
            errors = [_distance(runner.infer(feed[:batch]).logits, eager.infer(feed[:batch]).logits)
                      for batch in (1, 7, PARITY_IMAGES, 1)]
            fields |= {"max_error_against_eager": max(errors), "captured": runner.cuda_graph,
                       "capture_error": runner.capture_error}
        else:
            fields["kept_equal"] = [float(np.mean(np.sort(ours) == np.sort(theirs)))
                                    for ours, theirs in zip(found.kept, reference.kept)]
    # A lower precision has no bound here: its errors are only recorded.
    passed = fields["max_error"] <= CPU_TOLERANCE and fields.get("max_error_against_eager", 0.0) <= EAGER_TOLERANCE
    return fields | {"passed": passed if job.precision == "float32" else None}


def _distance(a: Any, b: Any) -> float:
    return float(np.abs(a - b).max())


def check_streams(bench: Bench, job: Job) -> dict[str, Any]:
    """The package's streams, buffers, events, profile switch and graph capture around a stand-in context: two streams
    at a time, at changing shapes. Every answer is compared with the same operators on the default stream.

    Each stream gets two batches, the second while the first may still run, so that a buffer overwritten too
    early, or an answer of the batch before, is detected.
    """
    cuda: Any = Cuda() if bench.device == "cuda" else HostCuda()
    outputs = [TensorSpec("logits", "float32", (None, CLASSES)), TensorSpec("kept_0", "int64", (None, KEPT))]
    source, graph = TensorSpec("images", "float32", (None, 3, SIDE, SIDE)), job.backend == "CUDA graph"
    contexts = [TorchContext(bench.device) for _ in range(2)]
    streams = [GpuStream(EngineProgram(context, "images", outputs, profile_for), cuda) for context in contexts]
    rng, wrong, errors, captured = np.random.default_rng(0), 0, [0.0], []
    repeats = 10 if bench.quick else STREAM_REPEATS
    for repeat in range(repeats):
        feeds = []
        for stream in streams:
            # Every other pair of repeats keeps the previous shape, so that a captured graph is replayed.
            again = repeat % 4 >= 2 and stream.shape is not None
            shape = stream.shape if again else (int(rng.integers(1, PROFILES[-1][1] + 1)), 3, SIDE, SIDE)
            if stream.shape != shape:
                stream.prepare(shape, source, graph)
            feeds.append(rng.standard_normal(shape, dtype=np.float32))
            stream.upload(rng.standard_normal(shape, dtype=np.float32))
            stream.launch()
        for stream, feed in zip(streams, feeds):
            stream.upload(feed)
            stream.launch()
        captured += [stream.captured for stream in streams]
        for stream, context, feed in zip(streams, contexts, feeds):
            logits, kept = stream.download([spec.name for spec in outputs])
            answer = context.answer(torch.from_numpy(feed).to(bench.device))
            expected, places = (value.cpu().numpy() for value in answer)
            errors.append(_distance(logits, expected) / max(1.0, float(np.abs(expected).max())))
            wrong += not (np.array_equal(kept, places) and errors[-1] <= STREAM_TOLERANCE)
    times = streams[0].timed(["logits"], np.zeros(streams[0].shape or (), np.float32), EVENT_RUNS)
    return {"repeats": repeats, "streams": len(streams), "wrong": wrong, "max_relative_error": max(errors),
            "captured": all(captured) if graph else None,
            "capture_error": next((stream.capture_error for stream in streams if stream.capture_error), ""),
            "profiles_used": sorted({number for context in contexts for number in context.profiles_chosen}),
            "events_ms": {name: statistics.median(ms) for name, ms in times.items()},
            "passed": wrong == 0 and (not graph or all(captured))}


class Enough(Exception):
    """Ends training after the steps that are timed."""


def time_training(bench: Bench, job: Job) -> dict[str, Any]:
    """Steps of `dyvit train` of the demo student beside its teacher, data loading included, after a warm-up."""
    require("sklearn", "demo")
    require("dyvit_deploy.training.setup")
    from dyvit_deploy.training.report import Step
    at: list[float] = []
    losses: list[float] = []
    steps = 3 if bench.quick else TRAIN_STEPS + TRAIN_WARM_UP

    def watch(event: Any) -> None:
        if isinstance(event, Step):
            at.append(time.perf_counter())
            losses.append(event.loss)
            if len(at) > steps:
                raise Enough

    batch = 32 if bench.quick else 256
    short = {"bfloat16": "bf16", "float16": "fp16"}[job.precision]
    with tempfile.TemporaryDirectory(dir=bench.folder) as out, contextlib.suppress(Enough):
        dv.train(dv.TrainConfig(
            "digits-s", "digits", out, backbone=DEMO / "digits-s-dense.safetensors", device=bench.device,
            workers=0 if bench.quick else 12, compile=job.backend == "PyTorch compiled",
            overrides=(("batch", batch), ("images", batch * (steps + 2)), ("epochs", 1), ("precision", short))), watch)
    gaps = [b - a for a, b in zip(at, at[1:])][min(TRAIN_WARM_UP, steps - 2):]
    return {"train_batch": batch, "steps": len(gaps), "step_ms_p50": statistics.median(gaps) * 1e3,
            "images_per_sec": batch / statistics.median(gaps), "first_loss": losses[0], "last_loss": losses[-1],
            "passed": all(map(math.isfinite, losses))}
