"""Puts weights into an engine that was built without them, or exchanges them."""
from __future__ import annotations

import dataclasses
import shlex
import time
from pathlib import Path
from typing import Any

from ..artifacts import require_file, sha256
from ..errors import ArtifactError, BackendError, ConfigError
from ..graph import graph_facts, load_graph
from .build import BuildReport, checked_target, save_engine
from .flavours import Door, open_door
from .load import load_engine
from .network import last
from .preflight import read_trusted, require_loadable
from .sidecar import read_sidecar, sidecar_path


def refit_engine(plan: str | Path, onnx: str | Path, path: str | Path) -> BuildReport:
    """Writes to `path` the engine `plan` with the weights of `onnx`, the graph that it was built of.

    Needs a GPU that can load the plan, and a plan built refittable or stripped.

    Raises:
        ArtifactError: the plan has no sidecar, or is not the file that it describes.
        ConfigError: `path` is no plan, or the plan itself.
        BackendError: the plan cannot load here, or does not take these weights.
    """
    plan, onnx, path = require_file(plan), require_file(onnx), checked_target(path)
    if path.resolve() == plan.resolve():
        raise ConfigError(f"{plan} would be overwritten by its own refit; name another -o.")
    known = read_sidecar(plan)
    if known and not (known.config.refittable or known.config.strip_weights):
        raise ConfigError(f"{plan} takes no other weights; build it with --refittable or --strip-weights.")
    flavour, facts = require_loadable(plan, trust=False, stripped=True)
    if facts is None:
        raise ArtifactError(f"{plan} has no {sidecar_path(plan).name} of its own, which says what it holds; refit the "
                            "plan that dyvit wrote, with that file beside it.")
    door = open_door(flavour.format)
    started = time.perf_counter()
    loaded = load_engine(door, read_trusted(plan, facts), str(plan), facts.config.version_compatible, facts.rebuild)
    engine = loaded.engine
    _refit(door, engine, onnx)
    settings = engine.create_serialization_config()
    settings.clear_flag(door.trt.SerializationFlag.EXCLUDE_WEIGHTS)
    content = engine.serialize_with_config(settings)
    if content is None:
        raise BackendError(f"{flavour.name} could not write the engine down ({last(door.logger.errors)}); build it "
                           "again without --strip-weights.")
    source = {"file": onnx.name, "sha256": sha256(onnx)}
    notes = [] if source["sha256"] == facts.source["sha256"] else [
        f"{onnx.name} is not the file that {plan.name} was built of, so its weights are others."]
    found = dataclasses.replace(
        facts, stripped=False, source=source, config=dataclasses.replace(facts.config, strip_weights=False),
        rebuild=shlex.join(["dyvit", "refit", str(plan), str(onnx), "-o", str(path)]),
        model=graph_facts(load_graph(onnx), str(onnx)))
    return save_engine(path, content, found, time.perf_counter() - started, notes)


def _refit(door: Door, engine: Any, onnx: Path) -> None:
    refitter = door.trt.Refitter(engine, door.logger)
    parser = door.trt.OnnxParserRefitter(refitter, door.logger)
    if not parser.refit_from_file(str(onnx)) or not refitter.refit_cuda_engine():
        raise BackendError(f"The engine does not take the weights of {onnx.name} ({last(door.logger.errors)}); give "
                           "the graph that it was built of, and build it with --refittable or --strip-weights.")
