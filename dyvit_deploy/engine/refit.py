"""Puts weights into an engine that was built without them, or replaces the weights of a refittable one."""
from __future__ import annotations

import dataclasses
import shlex
import time
from pathlib import Path
from typing import Any

from ..artifacts.files import require_file, sha256
from ..errors import BackendError, ConfigError
from ..graph.read import graph_facts, load_graph
from .build import BuildReport, checked_target, refit_warning, save_engine
from .library import BuilderLibrary, open_library
from .load import load_engine
from .network import last
from .preflight import read_trusted, require_described, require_loadable
from .sidecar import EngineFacts


def refit_engine(plan: str | Path, onnx: str | Path, path: str | Path, rebuild: str | None = None) -> BuildReport:
    """Writes to `path` the engine `plan` with the weights of `onnx`; `refit_artifact` also compares the two.

    Needs a GPU that can load the plan, and a plan that was built refittable, or one that was built without weights
    from `onnx` itself.

    Args:
        rebuild: the command that makes the result again; default is `refit_command`.

    Raises:
        ArtifactError: the plan has no sidecar, or is not the file that its sidecar describes.
        ConfigError: `path` is not named like a plan, or is the plan itself; or the plan does not take these weights.
        BackendError: the plan cannot load here, or the library refuses the weights.
    """
    plan, onnx, path = require_file(plan), require_file(onnx), checked_refit(plan, path)
    facts, source = require_described(plan), {"file": onnx.name, "sha256": sha256(onnx)}
    _check_weights(plan, facts, source)
    spec, _ = require_loadable(plan, trust=False, stripped=True)
    library = open_library(spec.format)
    started = time.perf_counter()
    loaded = load_engine(library, read_trusted(plan, facts), str(plan), facts.config.version_compatible, facts.rebuild)
    _refit(library, loaded.engine, onnx)
    content, refittable = _serialized(library, loaded.engine, facts.config.refittable)
    refitted = dataclasses.replace(
        facts, stripped=False, source=source,
        config=dataclasses.replace(facts.config, strip_weights=False, refittable=refittable),
        rebuild=rebuild or refit_command(plan, onnx, path),
        model=graph_facts(load_graph(onnx, weights=False), str(onnx)))
    notes = [*_weight_notes(library, plan, facts, refitted), *refit_warning(facts)]
    return save_engine(path, content, refitted, time.perf_counter() - started, notes)


def checked_refit(plan: str | Path, path: str | Path) -> Path:
    """`path`, checked to be a place where the refit of `plan` can be written.

    Raises:
        ConfigError, ArtifactError: it cannot be written there.
    """
    path = checked_target(path)
    if path.resolve() == Path(plan).resolve():
        raise ConfigError(f"{plan} would be overwritten by its own refit; name another -o.")
    return path


def refit_command(plan: str | Path, onnx: str | Path, path: str | Path) -> str:
    """The command that refits `plan` in this way."""
    return shlex.join(["dyvit", "refit", str(plan), str(onnx), "-o", str(path)])


def _check_weights(plan: Path, facts: EngineFacts, source: dict[str, str]) -> None:
    """Raises ConfigError unless the plan takes the weights of the file `source`."""
    if facts.config.refittable:
        return
    if not facts.config.strip_weights:
        raise ConfigError(f"{plan} takes no weights; build it with --refittable, or with --strip-weights for the same "
                          "ones.")
    # With STRIP_PLAN alone the builder relies on the values of the weights: other values give undefined results.
    if source["sha256"] != facts.source.get("sha256"):
        own, digest = facts.source.get("file"), str(facts.source.get("sha256"))[:12]
        raise ConfigError(f"{plan} was built with --strip-weights alone and takes only the weights that it was built "
                          f"with, those of {own} with sha256 {digest}, not those of {source['file']}; give that file, "
                          "or build the plan with --refittable.")


def _refit(library: BuilderLibrary, engine: Any, onnx: Path) -> None:
    refitter = library.trt.Refitter(engine, library.logger)
    parser = library.trt.OnnxParserRefitter(refitter, library.logger)
    if not parser.refit_from_file(str(onnx.resolve())) or not refitter.refit_cuda_engine():
        raise BackendError(f"The engine does not take the weights of {onnx.name} ({last(library.logger.errors)}); give "
                           "the graph that it was built from, and build it with --refittable or --strip-weights.")


def _serialized(library: BuilderLibrary, engine: Any, refittable: bool) -> tuple[Any, bool]:
    """The plan of `engine` with its weights, and whether it can be refitted; raises BackendError if the library cannot
    write it."""
    flags = library.trt.SerializationFlag
    # The flag exists since TensorRT 10.14; without it a plan that holds its weights cannot be refitted.
    keep = getattr(flags, "INCLUDE_REFIT", None) if refittable else None
    settings = engine.create_serialization_config()
    settings.clear_flag(flags.EXCLUDE_WEIGHTS)
    if keep is not None:
        settings.set_flag(keep)
    content = engine.serialize_with_config(settings)
    if content is None:
        raise BackendError(f"{library.spec.name} could not write the engine ({last(library.logger.errors)}); build it "
                           "again without --strip-weights.")
    return content, keep is not None


def _weight_notes(library: BuilderLibrary, plan: Path, before: EngineFacts, after: EngineFacts) -> list[str]:
    """Notes on which weights the result holds, and on whether it can be refitted."""
    notes = []
    file = after.source["file"]
    if before.source.get("sha256") != after.source["sha256"]:
        notes.append(f"{file} is not the file that {plan.name} was built from, so its weights may be others.")
    if not after.config.refittable:
        why = (f"{library.spec.name} {library.version} cannot keep it refittable, TensorRT 10.14 can; keep {plan.name} "
               "for the next refit" if before.config.refittable
               else f"{plan.name} was built with --strip-weights alone")
        notes.append(f"The new plan takes no other weights than those of {file}: {why}.")
    return notes
