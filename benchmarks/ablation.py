#!/usr/bin/env python3
"""The paper's ablations on the digit scenes, and one elastic student against one per keep ratio.

    python benchmarks/ablation.py               everything
    python benchmarks/ablation.py tables34      selectors (Table 4), number of stages, losses (Table 3), at equal cost
    python benchmarks/ablation.py elastic       --elastic 0.5:0.9 against students trained for one keep ratio each
    python benchmarks/ablation.py untrained     the dense teacher, pruned without training

Every student starts from the shipped dense checkpoint, which is also its teacher, and is trained with the recipe
`small`, shortened by --images and --epochs; its last weights are evaluated on all 2,000 held-out scenes. Runs of one
seed see the same images in the same order. Finished runs are kept in --work, and a second call resumes. Raw JSON is
written to benchmarks/results/.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

# One run per core is faster than one run on all cores.
os.environ["OMP_NUM_THREADS"] = "1"

from precision import write

from dyvit_deploy.artifacts.facts import library_versions
from dyvit_deploy.config import KeepRequest, LoadConfig, ModelConfig, PruneConfig, default_stages
from dyvit_deploy.demo import quickstart
from dyvit_deploy.evaluation.config import EvalConfig
from dyvit_deploy.evaluation.evaluate import evaluate_artifact
from dyvit_deploy.machine.hardware import machine
from dyvit_deploy.model.build import resolve
from dyvit_deploy.model.macs import count_costs
from dyvit_deploy.training.command import train
from dyvit_deploy.training.plan import TrainConfig

RATIO, SPAN, RATIOS = 0.7, (0.5, 0.9), (0.5, 0.7, 0.9)
MODEL, DATA = "digits-s", "digits"


@dataclass(frozen=True)
class Case:
    """One student: its keep request, its changes to the recipe, and the keep ratios at which it is evaluated."""

    name: str
    keep: KeepRequest
    overrides: tuple[tuple[str, object], ...] = ()
    # None: the keep ratios of training.
    measured_at: tuple[float | None, ...] = (None,)


def equal_cost(config: ModelConfig, stages: tuple[int, ...], gmacs: float) -> float:
    """The keep ratio at which pruning before `stages` costs about `gmacs`."""
    low, high = 0.05, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        cost = count_costs(config, [PruneConfig.from_ratio(middle, stages)])[0].gmacs
        low, high = (low, middle) if cost > gmacs else (middle, high)
    return round(low, 4)


def paper_cases() -> list[Case]:
    config = resolve(MODEL)
    stages = default_stages(config.depth)
    gmacs = count_costs(config, [PruneConfig.from_ratio(RATIO, stages)])[0].gmacs
    # Explicit stages, because by default attention drops tokens one block later.
    base = KeepRequest(ratio=RATIO, stages=stages)
    selectors = [Case(name, dataclasses.replace(base, selector=name)) for name in ("prediction", "attention", "random",
                                                                                    "static")]
    return [
        *selectors,
        Case("structural", KeepRequest(selector="structural")),
        *(Case(f"{count} stage{'s' * (count > 1)}", KeepRequest(
            ratio=equal_cost(config, stages[:count], gmacs), stages=stages[:count])) for count in (1, 2)),
        Case("without token distillation", base, (("distill_weight", 0.0),)),
        Case("without KL", base, (("kl_weight", 0.0),)),
        Case("without both", base, (("distill_weight", 0.0), ("kl_weight", 0.0))),
    ]


def elastic_cases() -> list[Case]:
    fixed = [Case(f"trained at {ratio}", KeepRequest(ratio=ratio), (), RATIOS if ratio == RATIO else (ratio,))
             for ratio in RATIOS]
    return [Case("elastic 0.5:0.9", KeepRequest(ratio=RATIO), (("elastic", SPAN),), RATIOS), *fixed]


def run(case: Case, seed: int, images: int, epochs: int, work: Path) -> dict:
    """Trains and evaluates one student; a finished one is read from `work`."""
    folder = work / f"{case.name.replace(' ', '-').replace(':', '-')}-{seed}"
    result = folder / "result.json"
    if result.exists():
        return json.loads(result.read_text())
    started = time.perf_counter()
    overrides = (("images", images), ("epochs", epochs), ("seed", seed), ("ema", None), *case.overrides)
    checkpoint = folder / "last.safetensors"
    report = train(TrainConfig(MODEL, DATA, folder, case.keep, quickstart.TEACHER, overrides=overrides, workers=0,
                               device="cpu", resume=checkpoint.exists()))
    seconds = time.perf_counter() - started
    top1 = {}
    for ratio in case.measured_at:
        load = LoadConfig(keep=KeepRequest(ratio=ratio)) if ratio else LoadConfig()
        top1[str(ratio or "own")] = evaluate_artifact(checkpoint, DATA, EvalConfig(batch=100, device="cpu"), load).top1
    found = {"case": case.name, "seed": seed, "top1": top1, "seconds": seconds, "kept": report.epochs[-1].kept,
             "loss": report.epochs[-1].loss}
    result.write_text(json.dumps(found))
    return found


def untrained() -> None:
    """Writes the accuracy of the dense teacher when it drops tokens without training."""
    keeps = [KeepRequest(ratio=ratio, selector="attention", fuse=fuse) for ratio in (0.9, 0.7, 0.5, 0.4)
             for fuse in (False, True)]
    keeps += [KeepRequest(ratio=RATIO, selector="random"), KeepRequest(selector="structural")]
    rows = []
    for keep in keeps:
        load = LoadConfig(keep=keep)
        found = evaluate_artifact(quickstart.TEACHER, DATA, EvalConfig(batch=100, device="cpu"), load)
        rows.append({"selector": keep.selector, "keep_ratio": keep.ratio, "fuse": keep.fuse, "top1": found.top1})
        print(rows[-1], file=sys.stderr, flush=True)
    write("demo-untrained.json", {"model": MODEL, "images": found.images, "rows": rows, "machine": machine(),
                                  "versions": library_versions("torch", "timm")})


def costs(cases: list[Case]) -> dict[str, float]:
    """GMACs of each case at the keep ratio of its training."""
    config = resolve(MODEL)
    default = PruneConfig.from_ratio(RATIO, default_stages(config.depth))
    prunes = [case.keep.resolve(config.depth, default) for case in cases]
    return {case.name: cost.gmacs for case, cost in zip(cases, count_costs(config, prunes))}


def ablate(what: str, options: argparse.Namespace) -> None:
    """Trains and evaluates the cases of one table, and writes the result."""
    cases = paper_cases() if what == "tables34" else elastic_cases()
    work = options.work / f"{what}-{options.images}x{options.epochs}"
    teacher = evaluate_artifact(quickstart.TEACHER, DATA, EvalConfig(batch=100, device="cpu")).top1
    rows = []
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(run, case, seed, options.images, options.epochs, work)
                for seed in range(options.seeds) for case in cases]
        for job in as_completed(jobs):
            rows.append(job.result())
            print(f"{len(rows)}/{len(jobs)}", rows[-1], file=sys.stderr, flush=True)
    order = {case.name: number for number, case in enumerate(cases)}
    rows.sort(key=lambda row: (order[row["case"]], row["seed"]))
    write(f"demo-{what}.json", {
        "model": MODEL, "teacher_top1": teacher, "images": options.images, "epochs": options.epochs,
        "gmacs": costs(cases), "dense_gmacs": count_costs(resolve(MODEL), [None])[0].gmacs, "rows": rows,
        "machine": machine(), "versions": library_versions("torch", "timm", "lightning-fabric")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("all", "tables34", "elastic", "untrained"), default="all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=9_600, help="per epoch")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", type=Path, default=Path("ablation-runs"), help="remove it when the code has changed")
    options = parser.parse_args()
    if options.what in ("all", "untrained"):
        untrained()
    for what in ("tables34", "elastic"):
        if options.what in ("all", what):
            ablate(what, options)


if __name__ == "__main__":
    main()
