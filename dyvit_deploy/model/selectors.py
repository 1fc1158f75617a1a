"""Selectors, which choose the patches to keep: one module per stage (paper, table 4).

| selector | score of a patch | needs training |
|---|---|---|
| prediction | the output of a small network on the tokens | yes |
| attention | the attention from the class token in the block before the stage | no |
| random | a random rank | no |
| static | a learned number per position in the grid | yes |
| structural | none: 2x2 neighbours are averaged | no |
"""
from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..config import ModelConfig, PruneConfig
from ..errors import ConfigError
from .pruning import received_attention
from .token_scorer import TokenScorer
from .vit import Attended


class AttentionScore(nn.Module):
    """`received_attention` as a module; by its name in the exported graph, its nodes stay float32."""

    def forward(self, query: Tensor, key: Tensor, scale: float, class_token: bool, kept: Tensor | None) -> Tensor:
        return received_attention(query, key, scale, class_token, kept)


class PositionScore(nn.Module):
    """Looks up one score per position in the grid; by its name in the exported graph, its nodes stay float32."""

    def forward(self, table: Tensor, position: Tensor) -> Tensor:
        """float [N] at int64 [B, K] -> [B, K]."""
        return table[position]


class AttentionSelector(nn.Module):
    """Ranks patches by the attention that they receive in the block before the stage."""

    def __init__(self, config: ModelConfig, stage: int) -> None:
        super().__init__()
        self.share = config.patches
        self.score = AttentionScore()

    def scores(self, tokens: Tensor, position: Tensor | None, attended: Attended) -> Tensor:
        """float [B, N, C] -> [B, N]; 1 is an equal share of the attention among all patches of the image."""
        received: Tensor = self.score(*attended)                           # [B, P + N]
        return received[:, -tokens.shape[1]:] * self.share


class RandomSelector(nn.Module):
    """Keeps random patches: a baseline for other selectors.

    Training draws a new set for every image. Inference uses one ranking for all images, stored in the checkpoint,
    because a graph must be deterministic.
    """

    ranking: Tensor

    def __init__(self, config: ModelConfig, stage: int) -> None:
        super().__init__()
        # Python's generator gives the same numbers on every machine and device.
        generator = random.Random(stage)
        order = sorted(range(config.patches), key=lambda _: generator.random())
        self.register_buffer("ranking", torch.tensor(order, dtype=torch.float32))
        self.score = PositionScore()

    def forward(self, tokens: Tensor, decision: Tensor) -> Tensor:
        """Equal log-probabilities of keep and drop, float [B, N, 2]."""
        return tokens.new_zeros(*decision.shape, 2)

    def scores(self, tokens: Tensor, position: Tensor, attended: Attended | None = None) -> Tensor:
        """int64 [B, N] -> float [B, N]."""
        score: Tensor = self.score(self.ranking, position)
        return score


class StaticSelector(nn.Module):
    """Learns one score per position in the grid, equal for all images."""

    def __init__(self, config: ModelConfig, stage: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(config.patches, 2))
        self.score = PositionScore()

    def forward(self, tokens: Tensor, decision: Tensor) -> Tensor:
        """Log-probabilities of keep and drop, float [B, N, 2]."""
        return self.logits.log_softmax(dim=-1).expand(len(tokens), -1, -1)

    def scores(self, tokens: Tensor, position: Tensor, attended: Attended | None = None) -> Tensor:
        """int64 [B, N] -> float [B, N], z0 - z1."""
        score: Tensor = self.score(self.logits[:, 0] - self.logits[:, 1], position)
        return score


class StructuralSelector(nn.Module):
    """Averages 2x2 patches, as the stages of a convolutional network do.

    Raises:
        ConfigError: the grid has an odd number of rows or columns.
    """

    def __init__(self, config: ModelConfig, stage: int) -> None:
        super().__init__()
        rows, columns = config.grid
        if rows % 2 or columns % 2:
            raise ConfigError(f"Structural pooling joins 2x2 patches, but the grid of {rows} x {columns} is not even; "
                              "choose an --image-size of an even number of patches.")
        self.cells = (rows // 2, 2, columns // 2, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """float [B, N, C] -> [B, N/4, C]."""
        return tokens.unflatten(1, self.cells).mean(dim=(2, 4)).flatten(1, 2)  # [B, N/4, C]


SELECTORS: dict[str, Callable[[ModelConfig, int], nn.Module]] = {
    "prediction": lambda config, stage: TokenScorer(config.width),
    "attention": AttentionSelector, "random": RandomSelector, "static": StaticSelector,
    "structural": StructuralSelector,
}
# Selectors that keep exactly K patches in training, too.
EXACT = ("attention", "random")
# Selectors whose scores depend on the position of a patch.
BY_POSITION = ("random", "static")


def make_selectors(config: ModelConfig, prune: PruneConfig | None) -> nn.ModuleList:
    """One selector per stage; empty without `prune`."""
    stages = prune.stages if prune else ()
    return nn.ModuleList(SELECTORS[prune.selector](config, stage) for stage in range(len(stages)) if prune)
