"""Runs checkpoints with PyTorch: the reference that exported artifacts are compared with."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from ..artifacts import ArtifactFacts
from ..config import LoadConfig
from ..errors import BackendError, ConfigError, did_you_mean, reason
from ..model.checkpoint import load_model
from ..model.dynamicvit import DynamicViT
from .base import InputSpec, Outputs, Runner

DEVICES = ("cpu", "cuda")


def torch_device(name: str | None) -> torch.device:
    """The device called `name`; None is CUDA where it works, else the CPU.

    Raises:
        ConfigError: no such device.
        BackendError: a CUDA device on a machine without one.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in DEVICES:
        raise ConfigError(f"Unknown device {name!r}.{did_you_mean(name, DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendError("PyTorch finds no CUDA device here; install a driver, or pass --device cpu.")
    return torch.device(name)


class PyTorchRunner(Runner):
    """Float32 inference with tokens removed, scores included."""

    backend = "PyTorch"

    def __init__(self, model: DynamicViT, facts: ArtifactFacts, name: str = "model") -> None:
        self.model, self.facts, self.name = model, facts, name
        self.device = next(model.parameters()).device.type
        self.input = InputSpec("images", "float32", (None, 3, *facts.model.image_size))

    @classmethod
    def open(cls, path: str | Path, load: LoadConfig = LoadConfig(), like: ArtifactFacts | None = None,
             device: str | None = None) -> PyTorchRunner:
        """Opens a checkpoint on `device`; see `torch_device` and `load_model`."""
        target = torch_device(device)
        model, facts = load_model(path, load, like)
        name = Path(path).name
        if not name.endswith(".safetensors") and facts.parent:             # a published file may hold two sets
            name += f" ({facts.parent['weights']} weights)"
        return cls(model.to(target), facts, name)

    def _infer(self, feed: NDArray[Any]) -> Outputs:
        training = self.model.training
        self.model.eval()
        try:
            # By default cuDNN rounds the inputs of float32 convolutions to TF32.
            with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                out = self.model.forward_pruned(torch.from_numpy(feed).to(self.device))
        except RuntimeError as error:
            raise BackendError(f"PyTorch could not run {self.name} at batch {len(feed)} ({reason(error)}); "
                               "try a smaller batch.") from error
        finally:
            self.model.train(training)
        return Outputs(out.logits.float().cpu().numpy(), tuple(k.cpu().numpy() for k in out.kept),
                       tuple(s.float().cpu().numpy() for s in out.scores))
