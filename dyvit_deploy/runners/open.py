"""The one door to runners: a path in, the runner that can run it out."""
from __future__ import annotations

from pathlib import Path

from ..artifacts import ArtifactFacts, require_file
from ..config import LoadConfig
from ..errors import ArtifactError
from ..optional import require
from .base import Runner

CHECKPOINTS = (".safetensors", ".pth", ".pt", ".tar", ".bin")


def is_checkpoint(path: str | Path) -> bool:
    """True when `path` is named like a PyTorch checkpoint."""
    return Path(path).suffix.lower() in CHECKPOINTS


def open_runner(path: str | Path, *, load: LoadConfig = LoadConfig(), like: ArtifactFacts | None = None,
                device: str | None = None, threads: int = 0) -> Runner:
    """Opens a checkpoint with PyTorch, or an ONNX file with ONNX Runtime.

    Args:
        path: decides the backend by its suffix.
        load, like: for checkpoints, see `dyvit_deploy.model.checkpoint.load_model`.
        device: "cpu" or "cuda"; default is CUDA where it works.
        threads: for ONNX Runtime; 0 uses all cores.

    Raises:
        ArtifactError: missing, damaged, or of a kind that nothing here runs.
    """
    path = require_file(path)
    if is_checkpoint(path):
        runner: Runner = require("dyvit_deploy.runners.pytorch").PyTorchRunner.open(path, load, like, device)
        return runner
    if path.suffix.lower() == ".onnx":
        runner = require("dyvit_deploy.runners.ort").OrtRunner(path, device, threads)
        return runner
    raise ArtifactError(f"{path} is neither an ONNX file (.onnx) nor a checkpoint ({', '.join(CHECKPOINTS)}); "
                        "rename it if it is one.")
