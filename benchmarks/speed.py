#!/usr/bin/env python3
"""The cost of export and the gain of pruning on this machine: the figures of the README's speed table.

    python benchmarks/speed.py deit-s --keep-ratio 0.7 --batch 1,8,32

Weights are random: neither time nor memory depends on them. Each command runs in a process of its
own, as a user would run it; the raw report of `dyvit bench` and the cost of `dyvit export` (wall seconds,
peak resident MiB) are written to benchmarks/results/MODEL-RATIO-cpu.json.
"""
from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dyvit_deploy.config import ModelConfig

RESULTS = Path(__file__).parent / "results"


def random_checkpoint(model: str | ModelConfig, ratio: float, folder: Path) -> Path:
    """A checkpoint of `model` (a config, or a name in the zoo) with random weights."""
    import torch

    from dyvit_deploy.artifacts.facts import ArtifactFacts
    from dyvit_deploy.config import PruneConfig, default_stages
    from dyvit_deploy.model import zoo
    from dyvit_deploy.model.checkpoint import save_checkpoint
    from dyvit_deploy.model.dynamicvit import DynamicViT

    torch.manual_seed(0)
    config = zoo.get(model) if isinstance(model, str) else model
    prune = PruneConfig.from_ratio(ratio, default_stages(config.depth))
    path = folder / f"{config.name}.safetensors"
    save_checkpoint(path, DynamicViT(config, prune), ArtifactFacts(config, prune))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--seconds", default="60")
    options = parser.parse_args()
    dyvit = [sys.executable, "-m", "dyvit_deploy"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = random_checkpoint(options.model, options.keep_ratio, folder)
        graph = folder / f"{options.model}.onnx"
        started = time.perf_counter()
        subprocess.run([*dyvit, "export", checkpoint, "-o", graph], check=True)
        seconds = time.perf_counter() - started
        peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        subprocess.run([*dyvit, "bench", graph, "--batch", options.batch, "--seconds", options.seconds,
                        "--json", folder / "bench.json"], check=True)
        bench = json.loads((folder / "bench.json").read_text())
    result = {"model": options.model, "keep_ratio": options.keep_ratio, "export_seconds": seconds,
              "export_peak_rss_mib": peak_mib, "bench": bench}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{options.model}-{options.keep_ratio}-cpu.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
