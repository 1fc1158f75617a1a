#!/usr/bin/env python3
"""Time and memory of engine builds without a GPU, and the precisions in the engines: the README's engine table.

    python benchmarks/engines.py deit-s --keep-ratio 0.7

TensorRT for RTX builds each engine in a process of its own, with the command of a user; seconds and peak memory are
those of the whole process, from the ONNX file to plan and sidecar. Weights and calibration images are random: neither
changes the structure of the engine. The raw results are written to benchmarks/results/MODEL-RATIO-engines.json.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from speed import RESULTS, random_checkpoint

PRECISIONS = {"float32": [], "float16": ["--fp16"], "int8": ["--int8", "--allow-random-calib"],
              "float8": ["--fp8", "--allow-random-calib"]}
MEASURED = ("import json, resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; "
            "print(json.dumps(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)); sys.exit(code)")


def build(graph: Path, plan: Path, dyvit: list[str]) -> dict:
    """Builds one engine and reads its report."""
    started = time.perf_counter()
    # In an intermediate process, because RUSAGE_CHILDREN reports the largest child so far.
    done = subprocess.run([sys.executable, "-c", MEASURED, *dyvit, "build", graph, "--format", "rtx", "-o", plan,
                           "--json", plan.with_suffix(".json")], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    report = json.loads(plan.with_suffix(".json").read_text())
    facts = report["facts"]
    products: dict[str, int] = {}
    for kind in facts["products"].values():
        products[kind] = products.get(kind, 0) + 1
    return {"seconds": seconds, "builder_seconds": report["seconds"],
            "peak_rss_mib": int(done.stdout.split()[-1]) / 1024, "plan_mib": report["size_mib"],
            "products": products, "fused_attention": len(facts["fused_attention"]),
            "attention": len(facts["fused_attention"]) + len(facts["unfused_attention"]),
            "verified": facts["verified"], "layers": len(facts["layers"]), "builder": facts["builder"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    options = parser.parse_args()
    dyvit = [sys.executable, "-m", "dyvit_deploy"]
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = random_checkpoint(options.model, options.keep_ratio, folder)
        for precision, flags in PRECISIONS.items():
            graph = folder / f"{precision}.onnx"
            lowered = ["--target", "tensorrt", "--no-gate", "--calib-images", "8"] if flags else []
            subprocess.run([*dyvit, "export", checkpoint, *flags, *lowered, "-o", graph], check=True)
            rows[precision] = build(graph, folder / f"{precision}.plan", dyvit)
    from dyvit_deploy.artifacts.facts import library_versions
    from dyvit_deploy.machine.hardware import machine

    result = {"model": options.model, "keep_ratio": options.keep_ratio, "machine": machine(),
              "versions": library_versions("tensorrt-rtx", "onnx", "torch"), "rows": rows}
    path = RESULTS / f"{options.model}-{options.keep_ratio}-engines.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
