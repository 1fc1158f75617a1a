#!/usr/bin/env python3
"""The C++ runtime against the Python one, on the same ONNX files, batches and threads: the table of docs/cpp.md.

    python benchmarks/cpp.py build/dyvit-bench --threads 2 --seconds 5 --rounds 9

Both take a batch in host memory and return logits in host memory, through ONNX Runtime sessions of the same settings.
In each round C++ (`dyvit-bench`, a process of its own) and Python run for `--seconds` each, in reverse order every
other round, so that drifting clocks affect both alike. The result is the median over rounds of each round's median.
deit-s has random weights: time does not depend on them. It is written to benchmarks/results/cpp-deit-s-0.7.json.
"""
from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from gpu import now
from speed import RESULTS, random_checkpoint

from dyvit_deploy.artifacts.facts import library_versions
from dyvit_deploy.artifacts.files import check_target, write_json
from dyvit_deploy.demo.quickstart import STUDENT
from dyvit_deploy.export.onnx import export_onnx
from dyvit_deploy.machine.hardware import machine
from dyvit_deploy.runners.ort import OrtRunner

MODEL, RATIO = "deit-s", 0.7
# As in dyvit-bench.
WARM_UP, LEAST_RUNS = 3, 10


def cpp_ms(program: Path, graph: Path, batch: int, threads: int, seconds: float) -> float:
    """Median milliseconds of a batch in C++."""
    command = [program, graph, "--batch", batch, "--threads", threads, "--seconds", seconds]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["timings"][0]["latency_ms_p50"])


def python_ms(runner: OrtRunner, batch: int, seconds: float) -> float:
    """Median milliseconds of a batch in Python."""
    shape = (batch, *runner.input.shape[1:])
    feed = np.random.default_rng(0).standard_normal(shape, np.float32)
    for _ in range(WARM_UP):
        runner.infer(feed)
    found: list[float] = []
    started = time.perf_counter()
    while len(found) < LEAST_RUNS or time.perf_counter() - started < seconds:
        begin = time.perf_counter()
        runner.infer(feed)
        found.append(1000 * (time.perf_counter() - begin))
    return statistics.median(found)


def compare(graph: Path, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row: both runtimes on `graph` at `batch`. `speedup` is the median over rounds of Python's time over C++'s."""
    rounds: list[dict[str, float]] = []
    with OrtRunner(graph, device="cpu", threads=options.threads) as runner:
        for number in range(options.rounds):
            pair = {"cpp": lambda: cpp_ms(options.program, graph, batch, options.threads, options.seconds),
                    "python": lambda: python_ms(runner, batch, options.seconds)}
            order = list(pair) if number % 2 == 0 else list(pair)[::-1]
            rounds.append({f"{name}_latency_ms_p50": pair[name]() for name in order})
    row: dict[str, Any] = {"model": graph.stem, "batch": batch, "threads": options.threads}
    for name in ("cpp", "python"):
        row[f"{name}_latency_ms_p50"] = statistics.median(r[f"{name}_latency_ms_p50"] for r in rounds)
        row[f"{name}_images_per_sec"] = 1000 * batch / row[f"{name}_latency_ms_p50"]
    ratios = [r["python_latency_ms_p50"] / r["cpp_latency_ms_p50"] for r in rounds]
    return row | {"speedup": statistics.median(ratios), "speedup_min": min(ratios), "speedup_max": max(ratios),
                  "rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path, help="dyvit-bench, built as Release")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS / f"cpp-{MODEL}-{RATIO}.json")
    options = parser.parse_args()
    options.program = options.program.resolve()
    check_target(options.out)
    result: dict[str, Any] = {"keep_ratio": RATIO, "seconds": options.seconds, "machine": machine(), "started": now(),
                              "versions": library_versions("onnxruntime", "onnxruntime-gpu", "numpy"), "rows": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for checkpoint in (random_checkpoint(MODEL, RATIO, folder), STUDENT):
            graph = folder / f"{checkpoint.stem}.onnx"
            export_onnx(checkpoint, graph)
            for batch in map(int, options.batch.split(",")):
                row = compare(graph, batch, options)
                result["rows"].append(row)
                print(f"{row['model']}, batch {batch}: C++ {row['cpp_latency_ms_p50']:.3f} ms, Python "
                      f"{row['python_latency_ms_p50']:.3f} ms, {row['speedup']:.3f}x "
                      f"({row['speedup_min']:.3f} to {row['speedup_max']:.3f})", flush=True)
    write_json(options.out, result)
    print(options.out)


if __name__ == "__main__":
    main()
