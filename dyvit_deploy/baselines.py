"""The dense backbone that a pruned artifact is timed against, made for the same runtime where none is given."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .artifacts.facts import ArtifactFacts
from .artifacts.files import atomic_write
from .calibration.collect import collect, examine
from .calibration.config import CalibrationConfig
from .calibration.lowering import Lowering
from .calibration.targets import Choice
from .config import QUANTIZED, LoadConfig
from .data.open import open_calibration
from .engine.build import build_engine
from .engine.sidecar import read_sidecar
from .errors import BackendError, ExportError, MissingDependency
from .export.config import ExportConfig
from .optional import require
from .runners.base import Runner
from .runners.open import is_engine

NOISE_IMAGES = 8                            # enough to lower a graph whose results nobody reads


@dataclass
class Candidate:
    """One artifact in a run of bench. `gmacs` are of one image; `baseline` is what it is compared with;
    `stand_in` marks a dense backbone with random weights; `load` is how it was opened."""

    runner: Runner
    path: str
    gmacs: float | None
    baseline: Candidate | None = None
    stand_in: bool = False
    load: LoadConfig = LoadConfig()


def with_baselines(candidates: list[Candidate], given: str | Path | None, folder: Path,
                   opened: Callable[..., Candidate]) -> tuple[list[Candidate], list[str]]:
    """The baselines first, then the artifacts, each knowing its own; and notes about those that have none.

    `opened` opens a path; with `plain`, a checkpoint without rewrites. One baseline is enough for all artifacts of the
    same model, backend and input; a dense artifact among them serves as it is. The baseline of an engine or a
    checkpoint has the same precision, else it is float32.
    """
    if given is not None:
        baseline = opened(given)
        for candidate in candidates:
            candidate.baseline = baseline
        return [baseline, *candidates], []
    notes: list[str] = []
    built: list[Candidate] = []
    dense = {_kind(c): c for c in candidates if c.runner.facts and _serves(c)}
    for candidate in candidates:
        runner, kind = candidate.runner, _kind(candidate)
        if runner.facts is None:
            notes.append(f"{runner.name} was not written by dyvit, so its dense baseline is unknown; pass --baseline "
                         "FILE to compare it with another artifact.")
        elif _serves(candidate):
            notes.append(f"{runner.name} drops no tokens: it is its own baseline.")
        else:
            if kind not in dense:
                try:
                    made = opened(_dense_baseline(candidate, folder / f"dense-{len(built)}"), plain=True)
                except (MissingDependency, ExportError, BackendError) as error:
                    if not is_engine(candidate.path):                      # the others need nothing that is not here
                        raise
                    notes.append(f"{runner.name} has no dense baseline here ({str(error).rstrip('.')}); pass "
                                 "--baseline FILE to compare it.")
                    continue
                made.runner.name, made.stand_in = f"dense {runner.facts.model.name}", True
                dense[kind] = made
                built.append(made)
            candidate.baseline = dense[kind]
    return [*built, *candidates], notes


def _serves(candidate: Candidate) -> bool:
    """True for a dense artifact that others are compared with."""
    runner = candidate.runner
    return bool(runner.facts and runner.facts.dense) and (_keeps_precision(candidate) or runner.precision == "float32")


def _keeps_precision(candidate: Candidate) -> bool:
    """True where the baseline has the candidate's own precision: engines, and checkpoints, which are lowered when they
    are opened."""
    return is_engine(candidate.path) or candidate.runner.backend == "PyTorch"


def _kind(candidate: Candidate) -> tuple[Any, ...]:
    """What two artifacts must share for their times to be compared as dense and pruned."""
    runner = candidate.runner
    precision = runner.precision if _keeps_precision(candidate) else "float32"
    return runner.facts and runner.facts.model, runner.label, runner.input.dtype == "uint8", precision


def _dense_baseline(candidate: Candidate, path: Path) -> Path:
    """Writes the dense backbone of the candidate's model, with random weights, for the same backend."""
    from .export.onnx import export_model
    from .export.openvino import write_openvino
    from .model.checkpoint import save_checkpoint
    from .model.dynamicvit import DynamicViT

    runner = candidate.runner
    assert runner.facts is not None
    facts = dataclasses.replace(runner.facts, prune=None, keep_counts=None, parent=None, training=None,
                                precision="float32", lowered=None, forms=())
    model = DynamicViT(facts.model, None).eval()
    if runner.backend == "PyTorch":
        path = path.with_suffix(".safetensors")
        save_checkpoint(path, model, facts)
        return path
    graph = path.with_suffix(".onnx")
    # The plain backbone: what a user would run instead has none of our rewrites.
    wishes = ExportConfig(input="uint8" if runner.input.dtype == "uint8" else "float32", without=("all",))
    facts = export_model(model, facts, graph, wishes).facts
    if runner.backend == "OpenVINO":
        write_openvino(graph, path.with_suffix(".xml"), facts)
        return path.with_suffix(".xml")
    return _dense_engine(candidate, graph) if is_engine(candidate.path) else graph


def _dense_engine(candidate: Candidate, graph: Path) -> Path:
    """The engine of the dense float32 `graph`, in the candidate's precision and built as it was."""
    facts, sidecar = candidate.runner.facts, read_sidecar(Path(candidate.path))
    assert facts is not None and sidecar is not None
    if facts.precision != "float32":
        how = facts.lowered or {}
        choice = Choice("onnx", "tensorrt", facts.precision, how.get("rest") or "float16")
        images = open_calibration(None, facts.model, NOISE_IMAGES)
        noise = CalibrationConfig(allow_noise=True)
        ranges = (collect(graph, images, examine(images, allow_noise=True), noise)
                  if facts.precision in QUANTIZED else None)
        lowered = Lowering(graph, choice, images, ranges, "float16" if facts.input == "float16" else "float32").lower()
        with atomic_write(graph) as temporary:
            require("onnx").save(lowered.proto, str(temporary))
    plan = graph.with_suffix(".plan")
    # Where its timings were kept is the business of the machine that built it, and a baseline needs its weights.
    settings = dataclasses.replace(sidecar.config, timing_cache=None, strip_weights=False, refittable=False)
    build_engine(graph, plan, sidecar.builder["format"], settings)
    return plan


def count_gmacs(facts: ArtifactFacts | None) -> float | None:
    """1e9 multiply-accumulates for one image; None for files that are not ours."""
    if facts is None:
        return None
    from .model.macs import count_costs

    return count_costs(facts.model, [facts.prune], facts.forms)[0].gmacs
