"""bench, with a dense baseline for the same runtime made for each pruned artifact if none is given."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..artifacts.facts import ArtifactFacts
from ..artifacts.files import size_mib
from ..bench import run
from ..bench.baselines import TimedArtifact
from ..bench.config import BenchConfig
from ..bench.report import BenchReport
from ..calibration.collect import collect, examine
from ..calibration.config import CalibrationConfig
from ..calibration.lowering import Lowering
from ..calibration.targets import ResolvedTarget
from ..config import QUANTIZED, LoadConfig
from ..data.images import Track, no_track
from ..data.open import open_calibration
from ..engine.build import build_engine
from ..engine.sidecar import read_sidecar
from ..errors import ArtifactError
from ..export.config import FORM_NAMES, ExportConfig
from ..graph.files import write_graph
from ..graph.read import Graph
from ..optional import require
from ..runners.open import is_engine

# So many weights of one byte each may be missing in a file.
SPARE = 4
# Enough to lower a graph whose outputs are not used.
NOISE_IMAGES = 8


def benchmark(artifacts: Sequence[str | Path], config: BenchConfig = BenchConfig(), load: LoadConfig = LoadConfig(),
              track: Track[Any] = no_track) -> BenchReport:
    """Times `artifacts` and their dense baselines alternately, at each batch size; see `bench.run.time_artifacts`.

    Raises:
        ArtifactError, BackendError: an artifact cannot be opened or run.
        ConfigError: values outside their range.
    """
    return run.time_artifacts(artifacts, config, load, track, make_dense)


def make_dense(candidate: TimedArtifact, path: Path, rewritten: bool = False) -> Path:
    """Writes the dense backbone of the candidate's model, with random weights of a fixed seed, for the same backend.

    Args:
        path: where to write it; the suffix is replaced by that of the backend.
        rewritten: apply the candidate's rewrites; otherwise none, which is what torch exports.

    Returns:
        The file.

    Raises:
        ArtifactError: the facts of the candidate are of a much larger model than its file has.
        BackendError, ExportError, MissingDependency: it cannot be made here.
    """
    from ..export.onnx import export_model
    from ..export.openvino import write_openvino
    from ..model.checkpoint import save_checkpoint
    from ..model.dynamicvit import DynamicViT

    runner = candidate.runner
    assert runner.facts is not None
    facts = dataclasses.replace(runner.facts, prune=None, keep_counts=None, parent=None, training=None,
                                precision="float32", lowered=None, forms=(), gate=None)
    # The facts of a checkpoint were compared with its tensors when it was opened, and a plan may have no weights.
    if runner.backend != "PyTorch" and not is_engine(candidate.path):
        _check_size(facts, Path(candidate.path))
    torch = require("torch")
    # The same file each time.
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = DynamicViT(facts.model, None).eval()
    if runner.backend == "PyTorch":
        path = path.with_suffix(".safetensors")
        save_checkpoint(path, model, facts)
        return path
    graph = path.with_suffix(".onnx")
    without = tuple(name for name in FORM_NAMES if not rewritten or name not in runner.facts.forms)
    export = ExportConfig(input="uint8" if runner.input.dtype == "uint8" else "float32", without=without)
    facts = export_model(model, facts, graph, export).facts
    if runner.backend == "OpenVINO":
        write_openvino(graph, path.with_suffix(".xml"), facts)
        return path.with_suffix(".xml")
    return _dense_engine(candidate, graph) if is_engine(candidate.path) else graph


def _check_size(facts: ArtifactFacts, path: Path) -> None:
    """Raises ArtifactError if the dense model of `facts` has more weights than the file `path`, which would
    otherwise be made of random numbers, whatever memory they take."""
    from ..model.macs import count_costs

    [cost] = count_costs(facts.model, [None])
    if cost.parameters > SPARE * size_mib(path) * 2**20:
        raise ArtifactError(f"The metadata of {path} are of another model: it would have {cost.parameters:,} weights, "
                            f"and the file has {size_mib(path):.1f} MiB; export it again.")


def _dense_engine(candidate: TimedArtifact, graph: Path) -> Path:
    """The engine of the dense float32 `graph`, in the candidate's precision and built as it was."""
    facts, sidecar = candidate.runner.facts, read_sidecar(Path(candidate.path))
    assert facts is not None and sidecar is not None
    if facts.precision != "float32":
        how, io = facts.lowered or {}, "float16" if facts.input == "float16" else "float32"
        resolved = ResolvedTarget("onnx", "tensorrt", facts.precision, how.get("rest") or "float16", io)
        images = open_calibration(None, facts.model, NOISE_IMAGES)
        noise = CalibrationConfig(allow_noise=True)
        float32 = Graph(graph)
        ranges = (collect(float32, images, examine(images, allow_noise=True), noise)
                  if facts.precision in QUANTIZED else None)
        lowered = Lowering(float32, resolved, images, ranges).lower()
        write_graph(lowered.proto, graph)
    plan = graph.with_suffix(".plan")
    # The recorded timing cache is a path on the machine that built the engine, and a baseline needs its weights.
    settings = dataclasses.replace(sidecar.config, timing_cache=None, strip_weights=False, refittable=False)
    build_engine(graph, plan, sidecar.builder["format"], settings)
    return plan
