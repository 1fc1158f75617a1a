"""Runs checkpoints with PyTorch: the reference that exported artifacts are compared with."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from ..artifacts import ArtifactFacts
from ..config import LoadConfig
from ..model.checkpoint import load_model
from ..model.dynamicvit import DynamicViT
from .base import InputSpec, Outputs, Runner


class PyTorchRunner(Runner):
    """Float32 inference with tokens removed, scores included."""

    def __init__(self, model: DynamicViT, facts: ArtifactFacts, name: str = "model") -> None:
        self.model, self.facts, self.name = model, facts, name
        self.device = next(model.parameters()).device
        self.backend = f"PyTorch {self.device.type}"
        self.input = InputSpec("images", "float32", (None, 3, *facts.model.image_size))

    @classmethod
    def open(cls, path: str | Path, load: LoadConfig = LoadConfig(), like: ArtifactFacts | None = None,
             device: str | None = None) -> PyTorchRunner:
        """Opens a checkpoint on `device` (default: CUDA where there is one). See `load_model`."""
        model, facts = load_model(path, load, like)
        target = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model.to(target), facts, Path(path).name)

    def _infer(self, feed: NDArray[Any]) -> Outputs:
        training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            out = self.model.forward_pruned(torch.from_numpy(feed).to(self.device))
        self.model.train(training)
        return Outputs(out.logits.float().cpu().numpy(), tuple(k.cpu().numpy() for k in out.kept),
                       tuple(s.float().cpu().numpy() for s in out.scores))
