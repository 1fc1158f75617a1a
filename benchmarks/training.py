#!/usr/bin/env python3
"""Time of a training step against a step of the dense backbone, and memory of training.

    python benchmarks/training.py

A step is forward and backward of one batch of 128 digit scenes. The dense step trains the backbone with
cross-entropy; the student's step has the masked forward, its predictors and four losses, once without and once
with the teacher's forward; each step is also timed with torch.compile. All steps take turns; the table shows
medians. Memory is the peak of a `dyvit train` process with deit-s at batch 32 in float32. Raw JSON is written to
benchmarks/results/.
"""
from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from precision import run, write
from torch.nn.attention import SDPBackend, sdpa_kernel

from dyvit_deploy.artifacts.facts import ArtifactFacts, library_versions
from dyvit_deploy.config import PruneConfig, default_stages
from dyvit_deploy.data.digits import DigitScenes
from dyvit_deploy.data.preprocess import normalise
from dyvit_deploy.machine.hardware import machine
from dyvit_deploy.model.build import resolve
from dyvit_deploy.model.checkpoint import save_checkpoint
from dyvit_deploy.model.dynamicvit import DynamicViT
from dyvit_deploy.training.losses import LossWeights
from dyvit_deploy.training.step import TrainingStep

BATCH = 128
WEIGHTS = torch.tensor(LossWeights())


def steps(compiled: bool) -> dict[str, TrainingStep]:
    """The modules that are timed."""
    config = resolve("digits-s")
    prune = PruneConfig.from_ratio(0.7, default_stages(config.depth))
    teacher = DynamicViT(config, None).eval().requires_grad_(False)
    made = {"dense": TrainingStep(DynamicViT(config, None), None, 0.1),
            "student alone": TrainingStep(DynamicViT(config, prune), None, 0.1),
            "student and teacher": TrainingStep(DynamicViT(config, prune), teacher, 0.1)}
    return {name: torch.compile(step) if compiled else step for name, step in made.items()}


def time_steps(precision: str, rounds: int) -> list[dict]:
    [batch] = DigitScenes(resolve("digits-s"), "train", BATCH).batches(BATCH)
    images = torch.from_numpy(normalise(batch.images, resolve("digits-s").preprocess))
    labels = torch.from_numpy(batch.labels)
    timed = {(name, compiled): step for compiled in (False, True) for name, step in steps(compiled).items()}
    seconds: dict[tuple[str, bool], list[float]] = {key: [] for key in timed}
    for number in range(rounds + 1):
        for key, step in timed.items():
            started = time.perf_counter()
            with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                losses, _ = step.train()(images, labels)
            (losses.float() * WEIGHTS).sum().backward()
            # The first round compiles.
            if number:
                seconds[key].append(time.perf_counter() - started)
            step.zero_grad()
    return [{"precision": precision, "step": name, "compiled": compiled, "ms": 1000 * statistics.median(found),
             "ms_all": [1000 * s for s in found]} for (name, compiled), found in seconds.items()]


def memory() -> dict[str, float]:
    """Peak memory of `dyvit train` with deit-s at batch 32 in float32."""
    config = resolve("deit-s")
    with tempfile.TemporaryDirectory() as name:
        backbone = Path(name) / "deit-s-dense.safetensors"
        ten = type(config)(**(config.__dict__ | {"classes": 10}))
        save_checkpoint(backbone, DynamicViT(ten, None), ArtifactFacts(ten))
        return run("train", "--model", "deit-s", "--data", "digits", "--backbone", backbone, "--images", 96, "--batch",
                   32, "--epochs", 1, "--precision", "fp32", "--device", "cpu", "--workers", 0, "-o", f"{name}/run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    timings = [timing for precision in ("fp32", "bf16") for timing in time_steps(precision, options.rounds)]
    write("demo-training.json", {"model": "digits-s", "batch": BATCH, "timings": timings, "memory": memory(),
                                 "threads": torch.get_num_threads(), "machine": machine(),
                                 "versions": library_versions("torch", "timm", "lightning-fabric")})


if __name__ == "__main__":
    main()
