"""Puts weights into an engine that was built without them, or exchanges them."""
from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from ..artifacts import check_target, require_file, sha256
from ..errors import ArtifactError, BackendError
from ..graph import graph_facts, load_graph
from .build import BuildReport, save_engine
from .flavours import Door, open_door
from .network import last
from .preflight import read_trusted, require_loadable
from .sidecar import sidecar_path


def refit_engine(plan: str | Path, onnx: str | Path, path: str | Path, trust: bool = False) -> BuildReport:
    """Writes to `path` the engine `plan` with the weights of `onnx`, the graph that it was built of.

    Needs a GPU that can load the plan, and a plan built refittable or stripped.

    Raises:
        ArtifactError: the plan has no sidecar, or is not the file that it describes.
        BackendError: the plan cannot load here, or does not take these weights.
    """
    plan, onnx, path = require_file(plan), require_file(onnx), check_target(path)
    flavour, facts = require_loadable(plan, trust, stripped=True)
    if facts is None:
        raise ArtifactError(f"{plan} has no {sidecar_path(plan).name} of its own, which says what it holds; refit the "
                            "plan that dyvit wrote, with that file beside it.")
    door = open_door(flavour.format)
    started = time.perf_counter()
    runtime = door.trt.Runtime(door.logger)
    if facts.config.version_compatible:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(read_trusted(plan, facts))
    if engine is None:
        raise BackendError(f"{flavour.name} cannot load {plan} ({last(door.logger.errors)}); build it again here.")
    _refit(door, engine, onnx)
    settings = engine.create_serialization_config()
    settings.clear_flag(door.trt.SerializationFlag.EXCLUDE_WEIGHTS)
    content = engine.serialize_with_config(settings)
    found = dataclasses.replace(facts, stripped=False, source={"file": onnx.name, "sha256": sha256(onnx)},
                                model=graph_facts(load_graph(onnx), str(onnx)))
    return save_engine(path, content, found, time.perf_counter() - started, [])


def _refit(door: Door, engine: Any, onnx: Path) -> None:
    refitter = door.trt.Refitter(engine, door.logger)
    parser = door.trt.OnnxParserRefitter(refitter, door.logger)
    if not parser.refit_from_file(str(onnx)) or not refitter.refit_cuda_engine():
        raise BackendError(f"The engine does not take the weights of {onnx.name} ({last(door.logger.errors)}); give "
                           "the graph that it was built of, and build it with --refittable or --strip-weights.")
