#!/usr/bin/env python3
"""Speed and accuracy of lower precisions on this machine: the figures of the README's precision tables.

    python benchmarks/precision.py speed deit-s --keep-ratio 0.7 --batch 1,8
    python benchmarks/precision.py accuracy

`speed` times every precision that a CPU runs, in ONNX Runtime and OpenVINO, in one run with the dense float32
model in ONNX Runtime; weights are random, because time does not depend on them. Each artifact is profiled, and compared
with the matrix-product peak of the machine. `speed` also measures calibration and export, each in a process of its own.
`accuracy` exports the demo student in every precision and compares it with float32 on all held-out scenes; precisions
that need a GPU are emulated. Raw JSON is written to benchmarks/results/.
"""
from __future__ import annotations

import argparse
import collections
import json
import sys
import tempfile
import time
from pathlib import Path
from subprocess import Popen

from speed import RESULTS, random_checkpoint

from dyvit_deploy.demo import quickstart
from dyvit_deploy.evaluation.evaluate import evaluate_artifact
from dyvit_deploy.parity.compare import check_artifacts
from dyvit_deploy.parity.config import CheckConfig

DYVIT = [sys.executable, "-m", "dyvit_deploy"]
DEMO = quickstart.STUDENT
# Name, format, and options of dyvit export; those of the second list need a GPU to be timed.
ON_CPU = [("ort-float32", "onnx", []), ("ort-int8", "onnx", ["--int8", "--calib", "digits"]),
          ("ort-float16", "onnx", ["--fp16", "--calib", "digits"]), ("openvino-float32", "openvino", []),
          ("openvino-bfloat16", "openvino", ["--bf16", "--calib", "digits"]),
          ("openvino-int8", "openvino", ["--int8", "--calib", "digits"])]
FOR_GPU = [(f"tensorrt-{name}", "onnx", [flag, "--calib", "digits", "--target", "tensorrt"])
           for name, flag in (("float16", "--fp16"), ("bfloat16", "--bf16"), ("int8", "--int8"), ("float8", "--fp8"))]
SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}


def run(*arguments: object) -> dict[str, float]:
    """Runs dyvit, and returns its wall seconds and the peak MiB of the process."""
    started, peak = time.perf_counter(), 0.0
    process = Popen([*DYVIT, *map(str, arguments)])
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status")
        lines = status.read_text().splitlines() if status.exists() else []
        peak = max([peak, *(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))])
        time.sleep(0.2)
    if process.returncode:
        sys.exit(f"dyvit {' '.join(map(str, arguments))} failed")
    return {"seconds": time.perf_counter() - started, "peak_rss_mib": peak}


def speed(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = random_checkpoint(options.model, options.keep_ratio, folder)
        dense, graphs, costs = folder / "dense.onnx", [], {}
        run("export", checkpoint, "--keep-ratio", "1.0", "-o", dense)
        for label, kind, more in ON_CPU:
            graphs.append(folder / f"{label}{SUFFIX[kind]}")
            # With random weights, scores and classes nearly tie, so the comparison would fail.
            ungated = ["--no-gate"] if more else []
            costs[label] = run("export", checkpoint, "--format", kind, *more, *ungated, "-o", graphs[-1])
        costs["ort-int8 with its gate"] = run("export", checkpoint, "--int8", "--calib", "digits", "--calib-images", 64,
                                              "-o", folder / "gated.onnx")
        costs["calibrate, 512 images"] = run("calibrate", graphs[0], "--data", "digits", "--images", 512,
                                             "-o", folder / "ranges.json")
        run("bench", *graphs, "--baseline", dense, "--batch", options.batch, "--seconds", options.seconds,
            "--peak", "--profile", "--json", folder / "bench.json")
        bench = json.loads((folder / "bench.json").read_text())
        # The temporary folder no longer exists when the report is read.
        bench["config"]["baseline"] = dense.name
        # Hundreds of layers each: the sums per operator suffice.
        for profile in bench["profiles"]:
            operators = collections.Counter()
            for layer in profile.pop("layers"):
                operators[layer["operator"]] += layer["ms"]
            profile["operators"] = dict(operators.most_common())
    write(f"{options.model}-{options.keep_ratio}-precision.json",
          {"model": options.model, "keep_ratio": options.keep_ratio, "costs": costs, "bench": bench})


def accuracy(options: argparse.Namespace) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for label, kind, more in [*ON_CPU, *FOR_GPU]:
            path = Path(name) / f"{label}{SUFFIX[kind]}"
            run("export", DEMO, "--format", kind, "--with-tokens", *more, "--json", f"{name}/report.json", "-o", path)
            report = json.loads(Path(f"{name}/report.json").read_text())
            result = evaluate_artifact(path, "digits")
            parity = check_artifacts(DEMO, path, "digits", CheckConfig(images=result.images, batches=(8,))).batches[0]
            rows.append({"name": label, "backend": result.backend, "images": result.images, "top1": result.top1,
                         "agreement": parity.top1_agreement, "relative_error": parity.relative_error,
                         "overlap": parity.overlap, "products": report["products"],
                         "size_mib": report["export"]["size_mib"]})
    write("demo-precision.json", {"reference_top1": evaluate_artifact(DEMO, "digits").top1, "rows": rows})


def write(name: str, result: dict) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps(result, indent=2) + "\n")
    print(RESULTS / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    timing = commands.add_parser("speed")
    timing.add_argument("model")
    timing.add_argument("--keep-ratio", type=float, default=0.7)
    timing.add_argument("--batch", default="1,8")
    timing.add_argument("--seconds", default="60")
    timing.set_defaults(call=speed)
    commands.add_parser("accuracy").set_defaults(call=accuracy)
    options = parser.parse_args()
    options.call(options)


if __name__ == "__main__":
    main()
