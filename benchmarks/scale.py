#!/usr/bin/env python3
"""Latency of dense and pruned against image size, batch and threads: the README's table of scale and its chart.

    python benchmarks/scale.py deit-s --keep-ratio 0.7 --seconds 300

Three series in ONNX Runtime, float32: image sizes at batch 1, batch sizes at the model's own image size, threads at
batch 8. Within a series, all sizes, dense and pruned, take turns, so that drifting clocks affect all of them alike.
Each row has the multiply-accumulates of its call. The patch size is the model's, or 14 pixels if the model's does not
divide the image: 518 pixels are 37 patches of 14. Weights are random: time does not depend on them. The result is
written to benchmarks/results/scale-MODEL-RATIO.json.

`--seconds` is the time per series; every point runs at least ten times, however short it is.
"""
from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpu import now, say
from peers import DENSE, ORT, PRUNED, Kit, figures, noise, parse
from speed import RESULTS

import dyvit_deploy as dv
from dyvit_deploy.artifacts.facts import library_versions
from dyvit_deploy.artifacts.files import check_target, write_json
from dyvit_deploy.bench.baselines import count_gmacs
from dyvit_deploy.bench.run import REPORTED_LIBRARIES
from dyvit_deploy.bench.timing import alternate
from dyvit_deploy.errors import ConfigError
from dyvit_deploy.machine.hardware import machine
from dyvit_deploy.model import zoo

OTHER_PATCH = 14
THREADS_BATCH = 8


class Point(NamedTuple):
    """One size of the model in one series; `threads` 0 uses all cores."""

    series: str
    size: int
    batch: int
    threads: int


def points(own: int, sizes: Sequence[int], batches: Sequence[int], cores: int) -> list[Point]:
    """All points to measure, for a model whose images are `own` pixels wide."""
    threads = sorted({*(2 ** power for power in range(cores.bit_length())), cores})
    return [*(Point("image size", size, 1, 0) for size in sizes), *(Point("batch", own, batch, 0) for batch in batches),
            *(Point("threads", own, THREADS_BATCH, count) for count in threads)]


def resized(config: dv.ModelConfig, size: int) -> dv.ModelConfig:
    """`config` for images of `size` pixels; ConfigError if no patch size divides them."""
    fitting = [patch for patch in (config.patch_size, OTHER_PATCH) if size % patch == 0]
    if not fitting:
        raise ConfigError(f"{size} pixels are not a multiple of {config.patch_size} or {OTHER_PATCH}; choose "
                          "another of --sizes.")
    return dataclasses.replace(config, name=f"{config.name}-{size}px", image_size=(size, size), patch_size=fitting[0])


def measure(series: Sequence[Point], model: dv.ModelConfig, kit: Kit, config: dv.BenchConfig) -> list[dict[str, Any]]:
    """Two rows per point, dense and pruned, all timed in turns."""
    rows, calls = [], []
    with contextlib.ExitStack() as stack:
        for point in series:
            sized = resized(model, point.size)
            feed = noise(sized, point.batch)
            for what in (DENSE, PRUNED):
                path = kit.exported(sized, what, ORT, "float32")
                runner = stack.enter_context(dv.open_runner(path, device="cpu", threads=point.threads))
                calls.append(runner.timed_call(feed, False))
                rows.append({"what": what, **point._asdict(), "threads": point.threads or os.cpu_count(),
                             "patch_size": sized.patch_size, "patches": sized.patches,
                             "gmacs": count_gmacs(runner.facts)})
        say(f"timing {len(calls)} models over {series[0].series}")
        samples = alternate(calls, config)
    for row, seconds in zip(rows, samples):
        row |= figures(seconds, row["batch"], config)
    for dense, pruned in zip(rows[::2], rows[1::2]):
        pruned["speedup"] = dense["latency_ms_p50"] / pruned["latency_ms_p50"]
        pruned["ceiling"] = dense["gmacs"] / pruned["gmacs"]
        say(f"{dense['size']} px, batch {dense['batch']}, {dense['threads']} threads: {dense['latency_ms_p50']:.1f} -> "
            f"{pruned['latency_ms_p50']:.1f} ms, {pruned['speedup']:.2f}x")
    return rows


def run(model: dv.ModelConfig, ratio: float, config: dv.BenchConfig, sizes: Sequence[int],
        path: Path) -> dict[str, Any]:
    """Measures all series, and writes the result after each."""
    wanted = points(model.image_size[0], sizes, config.batches, os.cpu_count() or 1)
    result: dict[str, Any] = {
        "model": model.name, "keep_ratio": ratio, "machine": machine(),
        "versions": library_versions(*REPORTED_LIBRARIES),
        "config": {"sizes": sizes, "batches": config.batches, "seconds": config.seconds, "stable": config.stable},
        "started": now(), "finished": None, "rows": []}
    with tempfile.TemporaryDirectory(prefix="dyvit-scale-") as name, contextlib.ExitStack() as stack:
        kit = Kit(Path(name), stack, model, ratio)
        for series in dict.fromkeys(point.series for point in wanted):
            result["rows"] += measure([point for point in wanted if point.series == series], model, kit, config)
            result["finished"] = now()
            write_json(path, result)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--sizes", type=parse, default=(224, 384, 518), help="image sizes in pixels")
    parser.add_argument("--batch", type=parse, default=(1, 2, 4, 8, 16, 32))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("-o", "--output", type=Path, help="default: benchmarks/results/scale-MODEL-RATIO.json")
    options = parser.parse_args()
    try:
        path = check_target(options.output or RESULTS / f"scale-{options.model}-{options.keep_ratio}.json")
        config = dv.BenchConfig(batches=options.batch, seconds=options.seconds)
        # Invalid sizes fail before an hour of timing, not after it.
        for size in options.sizes:
            resized(zoo.get(options.model), size)
        run(zoo.get(options.model), options.keep_ratio, config, options.sizes, path)
    except dv.DyvitError as error:
        parser.exit(1, f"{error}\n")
    print(path)


if __name__ == "__main__":
    main()
