"""The module that is exported."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data.preprocess import scale_and_shift
from ..model.dynamicvit import DynamicViT
from .config import ExportConfig


class InferenceGraph(nn.Module):
    """A model with the interface of the exported graph: optionally raw pixels as input and kept tokens as outputs."""

    def __init__(self, model: DynamicViT, config: ExportConfig) -> None:
        super().__init__()
        self.model, self.with_tokens, self.raw = model, config.with_tokens, config.input == "uint8"
        scale, shift = scale_and_shift(model.config.preprocess)
        device = next(model.parameters()).device
        self.register_buffer("scale", torch.tensor(scale, device=device).reshape(1, 3, 1, 1))
        self.register_buffer("shift", torch.tensor(shift, device=device).reshape(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """float32 [B, 3, height, width], or uint8 [B, height, width, 3] -> logits, then kept patches per stage."""
        if self.raw:
            # The cast comes first: TensorRT takes uint8 into a cast and nothing else.
            images = images.float().permute(0, 3, 1, 2) * self.scale + self.shift  # [B, 3, height, width]
        out = self.model.forward_pruned(images)
        return (out.logits, *out.kept) if self.with_tokens else (out.logits,)
