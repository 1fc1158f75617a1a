#!/usr/bin/env python3
"""The alternatives to this package, timed in one run with its artifacts: the README's table of peers.

    python benchmarks/peers.py deit-s --keep-ratio 0.7 --batch 1,8 --seconds 600

Each timing is one call, from a float32 batch in host memory to logits in host memory. All peers take turns, so that
drifting clocks affect all of them alike. Peers are the dense model (timm's, in eager PyTorch, under torch.compile, and
exported to every runtime and precision), the published algorithm exported unchanged, ToMe's merging of tokens where its
package is installed, and smaller dense models. Weights are random: time does not depend on them. The result,
benchmarks/results/peers-MODEL-RATIO.json, lists peers that are missing or failed.

`--seconds` is the time per batch size; every peer runs at least ten times, however short it is.
"""
from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gpu import now, say, why
from naive import Naive, export_naive
from numpy.typing import NDArray
from speed import RESULTS, random_checkpoint
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import dyvit_deploy as dv
from dyvit_deploy.artifacts.facts import library_versions
from dyvit_deploy.artifacts.files import check_target, write_json
from dyvit_deploy.bench.baselines import count_gmacs
from dyvit_deploy.bench.run import REPORTED_LIBRARIES
from dyvit_deploy.bench.timing import alternate, is_stable
from dyvit_deploy.errors import ExportError, MissingDependency
from dyvit_deploy.machine.hardware import machine
from dyvit_deploy.model import zoo
from dyvit_deploy.model.build import build_backbone

EAGER, COMPILED, ORT, OPENVINO = "PyTorch eager", "PyTorch compiled", "ONNX Runtime", "OpenVINO"
DENSE, PRUNED, PLAIN, NAIVE, MERGED = "dense", "pruned", "pruned, no rewrites", "pruned, naive export", "ToMe"
FORMATS = {ORT: ("onnx", ".onnx"), OPENVINO: ("openvino", ".xml")}
# Width and heads; the rest is as in deit-s.
SMALLER = {"deit-ti": (192, 3), "deit-256": (256, 4)}
AS_IT_IS = dv.ExportConfig(without=("all",), gather="elements")
# Calibration images; the accuracy does not matter here.
IMAGES = 8
# Largest relative error of the naive export; with random weights, rounding decides ties between scores.
SAME = 1e-3
LIBRARIES_TOO = ("timm", "onnx", "onnxscript")

Feed = NDArray[np.float32]


class Opened(NamedTuple):
    """A peer that is ready: `gmacs` of one image, and `call_for`, which returns the timed call for a batch."""

    gmacs: float | None
    call_for: Callable[[Feed], Callable[[], Any]]


class Peer(NamedTuple):
    """One peer: its kind, model, runtime and precision, and the function that opens it."""

    what: str
    model: str
    backend: str
    precision: str
    open: Callable[[Kit], Opened]

    def __str__(self) -> str:
        return f"{self.model}, {self.what}, {self.backend}, {self.precision}"

    def facts(self) -> dict[str, str]:
        return {"name": str(self), "what": self.what, "model": self.model, "backend": self.backend,
                "precision": self.precision}


@dataclasses.dataclass
class Kit:
    """Makes checkpoints and artifacts in `folder`; opened runners are closed with `stack`."""

    folder: Path
    stack: contextlib.ExitStack
    config: dv.ModelConfig
    ratio: float
    made: dict[str, Path] = dataclasses.field(default_factory=dict)
    naive_error: float | None = None

    def checkpoint(self, config: dv.ModelConfig) -> Path:
        if config.name not in self.made:
            self.made[config.name] = random_checkpoint(config, self.ratio, self.folder)
        return self.made[config.name]

    def exported(self, config: dv.ModelConfig, what: str, backend: str, precision: str) -> Path:
        """The artifact, made once and not compared with float32: with random weights, scores and classes nearly tie."""
        format, suffix = FORMATS[backend]
        path = self.folder / f"{config.name}-{what}-{backend}-{precision}{suffix}".replace(" ", "-")
        if path.exists():
            return path
        export = dv.ExportConfig() if what == PRUNED else AS_IT_IS
        lower = precision != "float32"
        deploy = dv.DeployConfig(
            format, export, dv.PrecisionConfig(precision, gate=False) if lower else dv.PrecisionConfig(),
            dv.CalibrationConfig("digits", images=IMAGES) if lower else dv.CalibrationConfig())
        keep = dv.KeepRequest(ratio=1.0) if what == DENSE else dv.KeepRequest()
        dv.export_artifact(self.checkpoint(config), path, deploy, dv.LoadConfig(keep=keep))
        return path

    def runner(self, path: Path) -> Any:
        return self.stack.enter_context(dv.open_runner(path, device="cpu"))


def count_macs(model: nn.Module, size: tuple[int, int]) -> float:
    """1e9 multiply-accumulates for one image, of any module."""
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
        model(torch.zeros(1, 3, *size))
    return counter.get_total_flops() / 2e9


def in_torch(model: nn.Module, feed: Feed) -> Callable[[], Any]:
    """The timed call of a module, after a first call, which compiles a compiled module."""
    images = torch.from_numpy(feed)

    @torch.inference_mode()
    def call() -> Any:
        return model(images).numpy()
    call()
    return call


def open_dense(kit: Kit) -> Opened:
    # timm's own VisionTransformer.
    model = build_backbone(kit.config).eval()
    return Opened(count_macs(model, kit.config.image_size), functools.partial(in_torch, model))


def compiled(opened: Callable[[Kit], nn.Module]) -> Callable[[Kit], Opened]:
    def open(kit: Kit) -> Opened:
        model = opened(kit)
        gmacs = count_macs(model, kit.config.image_size)
        return Opened(gmacs, lambda feed: in_torch(torch.compile(model, dynamic=False, fullgraph=True), feed))
    return open


def open_checkpoint(kit: Kit) -> Opened:
    runner = kit.runner(kit.checkpoint(kit.config))
    return Opened(count_gmacs(runner.facts), lambda feed: runner.timed_call(feed, False))


def artifact(what: str, backend: str, precision: str, config: dv.ModelConfig | None = None) -> Callable[[Kit], Opened]:
    """The function that opens an artifact of this package: of the kit's model, or of `config`."""
    def open(kit: Kit) -> Opened:
        runner = kit.runner(kit.exported(config or kit.config, what, backend, precision))
        return Opened(count_gmacs(runner.facts), lambda feed: runner.timed_call(feed, False))
    return open


def open_naive(kit: Kit) -> Opened:
    """The published algorithm; ExportError if its logits differ from ours, because then it is another model."""
    model, _ = dv.load_model(kit.checkpoint(kit.config))
    runner = kit.runner(export_naive(model, kit.folder / "naive.onnx"))
    feed = noise(kit.config, 2)
    with torch.inference_mode():
        ours = model.eval()(torch.from_numpy(feed)).numpy()
    kit.naive_error = float(np.abs(runner.infer(feed).logits - ours).max() / np.abs(ours).max())
    if not kit.naive_error <= SAME:
        raise ExportError(f"The naive export gives other logits than the model (relative error {kit.naive_error:.2g}); "
                          "report this to us.")
    return Opened(count_macs(Naive(model).eval(), kit.config.image_size),
                  lambda feed: runner.timed_call(feed, False))


def open_merged(kit: Kit) -> Opened:
    """ToMe on timm's model; the number of tokens merged per block is the one closest to the pruned model's cost.

    ToMe is not a dependency. Tried with its source as of 2023 and timm 1.0.31.
    """
    try:
        tome = importlib.import_module("tome")
    except ImportError as error:
        raise MissingDependency("tome is not installed; install it from the source of facebookresearch/ToMe to have it "
                                "timed.") from error
    model = build_backbone(kit.config).eval()
    tome.patch.timm(model)
    pruned, _ = dv.load_model(kit.checkpoint(kit.config))
    wanted, size = count_macs(pruned.eval(), kit.config.image_size), kit.config.image_size
    costs = {}
    for merged in range(1, kit.config.patches // kit.config.depth + 1):
        model.r = merged
        costs[merged] = count_macs(model, size)
    model.r = min(costs, key=lambda merged: abs(costs[merged] - wanted))
    say(f"ToMe merges {model.r} tokens per block: {costs[model.r]:.3f} GMACs, the pruned model has {wanted:.3f}")
    return Opened(costs[model.r], functools.partial(in_torch, model))


def peers(config: dv.ModelConfig) -> list[Peer]:
    """All peers. The first one is the baseline, the dense model in ONNX Runtime."""
    name = config.name
    lowered = [(ORT, "float32"), (ORT, "int8"), (OPENVINO, "float32"), (OPENVINO, "bfloat16"), (OPENVINO, "int8")]
    found = [Peer(what, name, backend, precision, artifact(what, backend, precision))
             for what in (DENSE, PRUNED) for backend, precision in lowered]
    smaller = [dataclasses.replace(zoo.get("deit-s"), name=label, width=width, heads=heads,
                                   image_size=config.image_size, patch_size=config.patch_size)
               for label, (width, heads) in SMALLER.items()]
    return [
        *found,
        Peer(PLAIN, name, ORT, "float32", artifact(PLAIN, ORT, "float32")),
        Peer(NAIVE, name, ORT, "float32", open_naive),
        *(Peer(DENSE, other.name, ORT, "float32", artifact(DENSE, ORT, "float32", other)) for other in smaller),
        Peer(DENSE, name, EAGER, "float32", open_dense),
        Peer(DENSE, name, COMPILED, "float32", compiled(lambda kit: build_backbone(kit.config).eval())),
        Peer(PRUNED, name, EAGER, "float32", open_checkpoint),
        Peer(PRUNED, name, COMPILED, "float32",
             compiled(lambda kit: dv.load_model(kit.checkpoint(kit.config))[0].eval())),
        Peer(MERGED, name, EAGER, "float32", open_merged),
    ]


def noise(config: dv.ModelConfig, batch: int) -> Feed:
    """float32 [B, 3, height, width]."""
    return np.random.default_rng(0).standard_normal((batch, 3, *config.image_size), dtype=np.float32)


def figures(seconds: Sequence[float], batch: int, config: dv.BenchConfig) -> dict[str, Any]:
    """The figures of one peer: percentiles, images/s, and whether it settled."""
    p50, p90, p99 = (float(q) * 1e3 for q in np.quantile(seconds, [0.5, 0.9, 0.99]))
    return {"batch": batch, "latency_ms_p50": p50, "latency_ms_p90": p90, "latency_ms_p99": p99,
            "images_per_sec": batch / p50 * 1e3, "runs": len(seconds), "stable": is_stable(seconds, config.stable)}


def open_all(wanted: Sequence[Peer], kit: Kit, result: dict[str, Any]) -> dict[Peer, Opened]:
    """The peers that can be opened here; the others are recorded as `missing` or `failed`."""
    ready = {}
    for peer in wanted:
        say(f"preparing {peer}")
        with record_failure(peer, result):
            ready[peer] = peer.open(kit)
    return ready


@contextlib.contextmanager
def record_failure(peer: Peer, result: dict[str, Any], **more: Any) -> Iterator[None]:
    """Records an error in the result, so that one peer does not stop the run."""
    try:
        yield
    except Exception as error:
        # Libraries raise exceptions of their own classes.
        kind = "missing" if isinstance(error, (MissingDependency, ImportError)) else "failed"
        result[kind].append({**peer.facts(), **more, "reason": why(error)})
        say(f"{peer} {'is missing' if kind == 'missing' else 'failed'}: {why(error)}")


def time_batch(ready: dict[Peer, Opened], batch: int, kit: Kit, config: dv.BenchConfig,
               result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per peer, all timed in turns."""
    feed, calls = noise(kit.config, batch), {}
    # Otherwise compiled code of the first batch size would influence the second.
    torch.compiler.reset()
    for peer, opened in ready.items():
        with record_failure(peer, result, batch=batch):
            call = opened.call_for(feed)
            # A call that fails here is not timed.
            call()
            calls[peer] = call
    if not calls:
        return []
    say(f"timing {len(calls)} peers at batch {batch}")
    samples = dict(zip(calls, alternate(list(calls.values()), config)))
    rows = [{**peer.facts(), "gmacs": ready[peer].gmacs, **figures(seconds, batch, config)}
            for peer, seconds in samples.items()]
    for row in rows:
        row["speedup"] = against(row, rows, ORT, "float32", kit.config.name)
        row["speedup_same_runtime"] = against(row, rows, row["backend"], row["precision"], kit.config.name)
        say(f"{row['name']}, batch {batch}: {row['images_per_sec']:.1f} images/s")
    return rows


def against(timed: dict[str, Any], rows: Sequence[dict[str, Any]], backend: str, precision: str,
            model: str) -> float | None:
    """The speed-up over the dense `model` in a runtime and precision; None if that was not timed."""
    wanted = (DENSE, model, backend, precision)
    found = [row for row in rows if (row["what"], row["model"], row["backend"], row["precision"]) == wanted]
    return timed["images_per_sec"] / found[0]["images_per_sec"] if found else None


def run(model: dv.ModelConfig, ratio: float, config: dv.BenchConfig, path: Path,
        candidates: Sequence[Peer] | None = None) -> dict[str, Any]:
    """Times all peers, and writes the result after every batch size."""
    result: dict[str, Any] = {
        "model": model.name, "keep_ratio": ratio, "machine": machine(),
        "versions": library_versions(*REPORTED_LIBRARIES, *LIBRARIES_TOO),
        "config": {"batches": config.batches, "seconds": config.seconds, "stable": config.stable,
                   "image_size": model.image_size, "torch_threads": torch.get_num_threads()},
        "started": now(), "finished": None, "naive_relative_error": None, "rows": [], "missing": [], "failed": []}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dyvit-peers-")))
        kit = Kit(folder, stack, model, ratio)
        ready = open_all(peers(model) if candidates is None else candidates, kit, result)
        result["naive_relative_error"] = kit.naive_error
        for batch in config.batches:
            result["rows"] += time_batch(ready, batch, kit, config, result)
            result["finished"] = now()
            write_json(path, result)
    return result


def parse(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--batch", type=parse, default=(1, 8))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("-o", "--output", type=Path, help="default: benchmarks/results/peers-MODEL-RATIO.json")
    options = parser.parse_args()
    try:
        path = check_target(options.output or RESULTS / f"peers-{options.model}-{options.keep_ratio}.json")
        config = dv.BenchConfig(batches=options.batch, seconds=options.seconds)
        run(zoo.get(options.model), options.keep_ratio, config, path)
    except dv.DyvitError as error:
        parser.exit(1, f"{error}\n")
    print(path)


if __name__ == "__main__":
    main()
