"""What chooses the patches that go on, one module per stage (paper, table 4).

| selector | score of a patch | needs training |
|---|---|---|
| prediction | a small network on the tokens | yes |
| attention | what the class token attends to, in the block before | no |
| random | nothing | no |
| static | a learned number per place in the grid | yes |
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
    """`received_attention` as a module, so that exported nodes carry the name by which they stay float32."""

    def forward(self, query: Tensor, key: Tensor, scale: float, class_token: bool, kept: Tensor | None) -> Tensor:
        return received_attention(query, key, scale, class_token, kept)


class PlaceScore(nn.Module):
    """One score per place in the grid, likewise."""

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
        """float [B, N, C] -> [B, N], in units of an even share of the attention among all patches."""
        received: Tensor = self.score(*attended)                           # [B, P + N]
        return received[:, -tokens.shape[1]:] * self.share


class RandomSelector(nn.Module):
    """Keeps patches by chance, to tell what a selector is worth.

    Training draws a new set for every image. Inference uses one ranking for all images, which the checkpoint
    holds: a graph must answer the same twice.
    """

    ranking: Tensor

    def __init__(self, config: ModelConfig, stage: int) -> None:
        super().__init__()
        dice = random.Random(stage)                                        # the same on every machine and device
        order = sorted(range(config.patches), key=lambda _: dice.random())
        self.register_buffer("ranking", torch.tensor(order, dtype=torch.float32))
        self.score = PlaceScore()

    def forward(self, tokens: Tensor, decision: Tensor) -> Tensor:
        """Even log-probabilities, float [B, N, 2]."""
        return tokens.new_zeros(*decision.shape, 2)

    def scores(self, tokens: Tensor, position: Tensor, attended: Attended | None = None) -> Tensor:
        """int64 [B, N] -> float [B, N]."""
        score: Tensor = self.score(self.ranking, position)
        return score


class StaticSelector(nn.Module):
    """Learns one score per place in the grid, the same for every image."""

    def __init__(self, config: ModelConfig, stage: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(config.patches, 2))
        self.score = PlaceScore()

    def forward(self, tokens: Tensor, decision: Tensor) -> Tensor:
        """Log-probabilities of keep and drop, float [B, N, 2]."""
        return self.logits.log_softmax(dim=-1).expand(len(tokens), -1, -1)

    def scores(self, tokens: Tensor, position: Tensor, attended: Attended | None = None) -> Tensor:
        """int64 [B, N] -> float [B, N], z0 - z1."""
        score: Tensor = self.score(self.logits[:, 0] - self.logits[:, 1], position)
        return score


class StructuralSelector(nn.Module):
    """Averages 2x2 patches, as the stages of a convolutional network do; raises ConfigError on an odd grid."""

    def __init__(self, config: ModelConfig, stage: int) -> None:
        super().__init__()
        rows, columns = config.grid
        if rows % 2 or columns % 2:
            raise ConfigError(f"Structural pooling joins 2x2 patches, and {rows} x {columns} is no even grid; choose "
                              "an --image-size of an even number of patches.")
        self.cells = (rows // 2, 2, columns // 2, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """float [B, N, C] -> [B, N/4, C]."""
        return tokens.unflatten(1, self.cells).mean(dim=(2, 4)).flatten(1, 2)  # [B, N/4, C]


SELECTORS: dict[str, Callable[[ModelConfig, int], nn.Module]] = {
    "prediction": lambda config, stage: TokenScorer(config.width),
    "attention": AttentionSelector, "random": RandomSelector, "static": StaticSelector,
    "structural": StructuralSelector,
}
EXACT = ("attention", "random")                                            # keep exactly K in training too
BY_PLACE = ("random", "static")                                            # look at where a patch is


def make_selectors(config: ModelConfig, prune: PruneConfig | None) -> nn.ModuleList:
    """One selector per stage."""
    stages = prune.stages if prune else ()
    return nn.ModuleList(SELECTORS[prune.selector](config, stage) for stage in range(len(stages)) if prune)
