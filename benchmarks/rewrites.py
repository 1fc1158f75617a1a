#!/usr/bin/env python3
"""The gain of each rewrite of the inference graph, added one by one: the figures of the README's rewrite table.

    python benchmarks/rewrites.py deit-s --keep-ratio 0.7 --batch 1,8

Every row adds one rewrite to those above it; all rows of a batch size and the dense backbone take turns within one run,
in ONNX Runtime and in OpenVINO (float32). The last row also rounds the kept tokens to multiples of 8; the effect on
accuracy is measured on the demo student. Weights of the timed model are random: time does not depend on them. The
result includes a float32 profile of the graph with all rewrites. Raw JSON is written to benchmarks/results/.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from speed import RESULTS, random_checkpoint

from dyvit_deploy.artifacts.facts import library_versions
from dyvit_deploy.bench.baselines import count_gmacs
from dyvit_deploy.bench.config import BenchConfig
from dyvit_deploy.bench.process import make_feed
from dyvit_deploy.bench.profile import profile
from dyvit_deploy.bench.run import REPORTED_LIBRARIES
from dyvit_deploy.bench.timing import alternate, is_stable, quantile_interval
from dyvit_deploy.config import KeepRequest, LoadConfig
from dyvit_deploy.demo import quickstart
from dyvit_deploy.deploy.config import DeployConfig
from dyvit_deploy.deploy.pipeline import export_artifact
from dyvit_deploy.evaluation.evaluate import evaluate_artifact
from dyvit_deploy.export.config import FORM_NAMES, ExportConfig
from dyvit_deploy.export.onnx import export_onnx
from dyvit_deploy.export.openvino import write_openvino
from dyvit_deploy.machine.hardware import machine
from dyvit_deploy.runners.open import open_runner

ALIGN = 8


def variants(ratio: float) -> dict[str, tuple[ExportConfig, LoadConfig]]:
    """Name, graph and keep ratio of each row: dense, plain, then one more rewrite per row."""
    plain, pruned = ExportConfig(without=("all",), gather="elements"), LoadConfig(keep=KeepRequest(ratio=ratio))
    rows = {"dense": (plain, LoadConfig(keep=KeepRequest(ratio=1.0))), "plain": (plain, pruned)}
    for count, name in enumerate(FORM_NAMES, 1):
        # The timed models have no batch norms.
        if name != "fold-batch-norm":
            rows[name] = (ExportConfig(without=FORM_NAMES[count:], gather="elements"), pruned)
    rows["gather-nd"] = (ExportConfig(gather="nd"), pruned)
    rows[f"align {ALIGN}"] = (ExportConfig(gather="nd"), LoadConfig(keep=KeepRequest(ratio=ratio, align=ALIGN)))
    return rows


def time_runtime(files: dict[str, Path], batches: list[int], seconds: float) -> list[dict]:
    """One row per variant and batch size, timed in turns; `against_dense` is the speed-up."""
    rows = []
    with contextlib.ExitStack() as stack:
        runners = {name: stack.enter_context(open_runner(path)) for name, path in files.items()}
        for batch in batches:
            calls = [runner.timed_call(make_feed(runner, batch), False) for runner in runners.values()]
            samples = dict(zip(runners, alternate(calls, BenchConfig((batch,), seconds))))
            dense = float(np.median(samples["dense"]))
            for name, times in samples.items():
                low, high = quantile_interval(times, 0.5)
                rows.append({"variant": name, "backend": runners[name].backend, "batch": batch,
                             "latency_ms_p50": float(np.median(times)) * 1e3,
                             "ci95_ms": [low and low * 1e3, high and high * 1e3], "runs": len(times),
                             "stable": is_stable(times, 0.02), "gmacs": count_gmacs(runners[name].facts),
                             "against_dense": dense / float(np.median(times))})
    return rows


def align_accuracy(folder: Path) -> list[dict]:
    """Accuracy of the demo student on all held-out scenes, with and without --align."""
    rows = []
    for align in (None, ALIGN):
        path = folder / f"demo-{align}.onnx"
        report = export_artifact(quickstart.STUDENT, path, DeployConfig(), LoadConfig(keep=KeepRequest(align=align)))
        result = evaluate_artifact(path, "digits")
        rows.append({"align": align, "keep_counts": report.export.facts.keep_counts, "top1": result.top1,
                     "images": result.images})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--seconds", type=float, default=90)
    options = parser.parse_args()
    batches = [int(batch) for batch in options.batch.split(",")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = random_checkpoint(options.model, options.keep_ratio, folder)
        graphs, models = {}, {}
        for label, (export, load) in variants(options.keep_ratio).items():
            print(f"exporting {label}", file=sys.stderr)
            graphs[label], models[label] = folder / f"{label}.onnx", folder / f"{label}.xml"
            report = export_onnx(checkpoint, graphs[label], export, load)
            write_openvino(graphs[label], models[label], report.facts)
        rows = []
        for files in (graphs, models):
            print(f"timing {next(iter(files.values())).suffix}", file=sys.stderr)
            rows += time_runtime(files, batches, options.seconds)
        profiles = []
        for path in (graphs["gather-nd"], models["gather-nd"]):
            with open_runner(path) as runner:
                profiles += [profile(runner, batch).to_json() for batch in batches]
        result = {"model": options.model, "keep_ratio": options.keep_ratio, "rows": rows, "profiles": profiles,
                  "align": align_accuracy(folder), "machine": machine(),
                  "versions": library_versions(*REPORTED_LIBRARIES)}
    path = RESULTS / f"{options.model}-{options.keep_ratio}-rewrites.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
