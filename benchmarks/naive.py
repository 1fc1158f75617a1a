"""The published inference algorithm, written as in its description, which benchmarks/peers.py exports unchanged."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from dyvit_deploy.model.dynamicvit import DynamicViT
from dyvit_deploy.model.vit import embed


class Naive(nn.Module):
    """What `model` computes, in the operations of the published algorithm: log-probabilities of both outcomes, a
    sort of all patches of which the first K stay, and their rows by index arithmetic over the flattened batch.

    Blocks and predictors are those of `model`: the same weights give the same logits, to rounding.
    """

    def __init__(self, model: DynamicViT) -> None:
        super().__init__()
        self.backbone, self.score_predictor = model.backbone, model.score_predictor
        self.prefix, self.keep_counts, self.stage_of = model.prefix, model.keep_counts, model.stage_of

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, height, width], normalised -> logits [B, classes]."""
        tokens = embed(self.backbone, images)                              # [B, P + N, C]
        for index, block in enumerate(self.backbone.blocks):
            if (stage := self.stage_of.get(index)) is not None:
                first, patches = tokens[:, :self.prefix], tokens[:, self.prefix:]
                log_probs = self.score_predictor[stage](patches, torch.ones_like(patches[..., 0]))  # [B, N, 2]
                ranking = torch.argsort(log_probs[..., 0], dim=1, descending=True)
                tokens = torch.cat([first, pick_rows(patches, ranking[:, :self.keep_counts[stage]])], dim=1)
            tokens = block(tokens)
        logits: Tensor = self.backbone.forward_head(self.backbone.norm(tokens))
        return logits


def pick_rows(tokens: Tensor, kept: Tensor) -> Tensor:
    """Rows `kept` int64 [B, K] of `tokens` [B, N, C]: [B, K, C]."""
    batch, count, width = tokens.shape
    starts = torch.arange(batch, device=kept.device).unsqueeze(1) * count  # start of each image, [B, 1]
    rows = tokens.reshape(batch * count, width)[(starts + kept).reshape(-1)]  # [B * K, C]
    return rows.reshape(batch, kept.shape[1], width)


def export_naive(model: DynamicViT, path: Path) -> Path:
    """Exports the naive model with `torch.onnx.export` alone, for any batch."""
    # An example batch of 1 would become a constant of the graph.
    images = torch.zeros(2, 3, *model.config.image_size)
    torch.onnx.export(Naive(model).eval(), (images,), str(path), input_names=["images"], output_names=["logits"],
                      dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True, verbose=False)
    return path
