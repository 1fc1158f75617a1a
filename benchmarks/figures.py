#!/usr/bin/env python3
"""Time and memory of `dyvit visualize`: the table of docs/visualize.md.

    python benchmarks/figures.py --rounds 3

The whole command is timed, from the start of Python to the last file, in a process of its own, on 200 and on 1,000
digit scenes: memory must not grow with their number. The table shows the slowest round. The result is written to
benchmarks/results/figures-digits-s.json.
"""
from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu import now
from speed import RESULTS

from dyvit_deploy.artifacts.facts import library_versions
from dyvit_deploy.artifacts.files import check_target, write_json
from dyvit_deploy.demo.quickstart import STUDENT
from dyvit_deploy.export.config import ExportConfig
from dyvit_deploy.export.onnx import export_onnx
from dyvit_deploy.machine.hardware import machine

COUNTS = (200, 1000)


def peak_mib(pid: int) -> float:
    """The peak memory of a running process (Linux); the kernel's figure at exit would include its parent's memory."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        # The process has just ended.
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0.0)


def one_run(graph: Path, images: int, folder: Path) -> dict[str, float]:
    """Seconds and peak memory of one command."""
    command = [sys.executable, "-m", "dyvit_deploy", "visualize", str(graph), "--data", "digits", "--images",
               str(images), "-o", str(folder)]
    started, memory = time.perf_counter(), 0.0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            memory = max(memory, peak_mib(process.pid))
            time.sleep(0.1)
    seconds = time.perf_counter() - started
    files = len(list(folder.iterdir()))
    if process.returncode or files != images + 1:
        raise SystemExit(f"{' '.join(command)} left {files} files and exit code {process.returncode}.")
    return {"images": images, "seconds": seconds, "peak_rss_mib": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "figures-digits-s.json")
    options = parser.parse_args()
    check_target(options.out)
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        graph = Path(name) / "digits-s.onnx"
        export_onnx(STUDENT, graph, ExportConfig(with_tokens=True))
        for number in range(options.rounds):
            for count in COUNTS:
                rounds.append(one_run(graph, count, Path(name) / f"{number}-{count}"))
                print(rounds[-1], flush=True)
    write_json(options.out, {"model": "digits-s", "machine": machine(), "started": now(), "rounds": rounds,
                             "versions": library_versions("onnxruntime", "onnxruntime-gpu", "matplotlib", "pillow")})
    print(options.out)


if __name__ == "__main__":
    main()
