"""Opens any artifact with the runner for its kind; no other module imports the runners' modules for this."""
from __future__ import annotations

import contextlib
import dataclasses
import importlib
from pathlib import Path

from ..artifacts.facts import ArtifactFacts
from ..artifacts.files import require_source
from ..artifacts.kinds import CHECKPOINT, ENGINE, ONNX, OPENVINO, SUFFIXES, foreign_kind, kind_of
from ..config import EngineRunConfig, KeepRequest, LoadConfig
from ..errors import ArtifactError, ConfigError
from .base import Runner

# Kind: module and class.
GRAPH_RUNNERS = {ONNX: ("ort", "OrtRunner"), OPENVINO: ("openvino", "OpenVINORunner")}


def is_checkpoint(path: str | Path) -> bool:
    """True if `path` is a checkpoint, see `artifacts.kinds`."""
    return kind_of(path) == CHECKPOINT


def is_engine(path: str | Path) -> bool:
    """True if `path` is an engine plan."""
    return kind_of(path) == ENGINE


def check_engine_device(path: str | Path, device: str | None) -> None:
    """Raises ConfigError if the engine `path` is to run on a `device` other than a GPU."""
    if device not in (None, "cuda"):
        raise ConfigError(f"{path} is an engine for a GPU; leave out --device.")


def load_for(path: str | Path, load: LoadConfig) -> LoadConfig:
    """The settings of `load` that apply to an artifact of this kind, for commands that open several kinds."""
    if is_checkpoint(path):
        return dataclasses.replace(load, engine=EngineRunConfig(
            cuda_graph=load.engine.cuda_graph, rewrites=load.engine.rewrites))
    return LoadConfig(
        image_size=load.image_size, engine=load.engine if is_engine(path) else EngineRunConfig())


def open_runner(path: str | Path, *, load: LoadConfig = LoadConfig(), like: ArtifactFacts | None = None,
                device: str | None = None, threads: int = 0) -> Runner:
    """Opens a checkpoint with PyTorch, an ONNX file with ONNX Runtime, OpenVINO's .xml with OpenVINO, an engine
    plan with the TensorRT that built it.

    Args:
        path: decides the backend by its suffix or, where that says nothing, by its first bytes.
        load, like: apply to checkpoints, see `dyvit_deploy.model.checkpoint.load_model`. `load.image_size` also
            applies to graphs that dyvit did not export, because theirs may be free; `load.engine` applies to plans,
            and its CUDA graph to checkpoints, too.
        device: "cpu" or "cuda"; default is CUDA if it works.
        threads: number of threads of ONNX Runtime or OpenVINO; 0 uses all cores.

    Raises:
        ArtifactError: the file is missing, damaged, or of an unknown kind.
        ConfigError: options that were fixed when the file was exported.
    """
    path = require_source(path)
    if is_checkpoint(path):
        if like and (load.keep != KeepRequest() or load.image_size):
            raise ConfigError(f"{path} is opened as the other artifact was exported; leave out the --keep options, "
                              "--stages, --selector, --fuse and --image-size.")
        from .pytorch import PyTorchRunner
        return PyTorchRunner.open(path, load, like, device)
    runner = _open_fixed(path, load, device, threads)
    fixed = dataclasses.replace(load, engine=EngineRunConfig(), image_size=load.image_size if runner.facts else None)
    if fixed != LoadConfig():
        raise fixed_at_export(path)
    return runner


def fixed_at_export(path: str | Path) -> ConfigError:
    """The error for options of checkpoints with an artifact of another kind."""
    return ConfigError(f"{path} was fixed when it was exported; --model, --model-args, --weights, --image-size, "
                       "--mean, --std, --crop, --interpolation, --selector, --fp16, --bf16 and the --keep options are "
                       "for checkpoints.")


def _open_fixed(path: Path, load: LoadConfig, device: str | None, threads: int) -> Runner:
    """The runner of a graph or engine, whose model was fixed at export."""
    if is_engine(path):
        check_engine_device(path, device)
        from .tensorrt import TensorRTRunner
        return TensorRTRunner(path, load.engine)
    kind = kind_of(path)
    if kind not in GRAPH_RUNNERS:
        raise unknown_kind(path)
    module, name = GRAPH_RUNNERS[kind]
    runner: Runner = getattr(importlib.import_module(f".{module}", __package__), name)(path, device, threads)
    return runner


def unknown_kind(path: Path) -> ArtifactError:
    """The error for a file of an unknown kind."""
    start = b""
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = file.read(16)
    if foreign := foreign_kind(path, start):
        return ArtifactError(f"{path} is {foreign}")
    return ArtifactError(f"{path} is neither an ONNX file (.onnx), an OpenVINO model (.xml), an engine plan (.plan) "
                         f"nor a checkpoint ({', '.join(SUFFIXES[CHECKPOINT])}), by its suffix or its content; name "
                         "another file.")
