"""The network that scores tokens, one per stage (paper, section 3.2; published code)."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pruning import masked_mean


class KeepScore(nn.Module):
    """z0 - z1 of a linear layer as one linear output; by the name of this module, the exported nodes stay float32."""

    def forward(self, features: Tensor, last: nn.Linear) -> Tensor:
        """[B, N, C/4] -> [B, N]."""
        weight, bias = last.weight, last.bias
        return F.linear(features, weight[:1] - weight[1:], bias[:1] - bias[1:]).squeeze(-1)


class TokenScorer(nn.Module):
    """Scores patch tokens by their own features and the mean over all kept tokens.

    Tensor names are those of published checkpoints. Output index 0 means KEEP, as in the
    published code (the paper writes index 1).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(width, width // 2), nn.GELU(),
            nn.Linear(width // 2, width // 4), nn.GELU(),
            nn.Linear(width // 4, 2),
        )
        self.score = KeepScore()

    def _features(self, tokens: Tensor, decision: Tensor | None) -> Tensor:
        """All layers but the last: [B, N, C] -> [B, N, C/4]."""
        local, shared = self.in_conv(tokens).chunk(2, dim=-1)              # [B, N, C/2] twice
        if decision is None:
            mean = shared.mean(dim=1, keepdim=True)                        # [B, 1, C/2]
        else:
            mean = masked_mean(shared, decision)                           # [B, 1, C/2]
        joined = torch.cat([local, mean.expand_as(local)], dim=-1)         # [B, N, C]
        features: Tensor = self.out_conv[:-1](joined)
        return features

    def forward(self, tokens: Tensor, decision: Tensor) -> Tensor:
        """Log-probabilities of keep and drop for training.

        Args:
            tokens: float [B, N, C], patch tokens of the raw residual stream.
            decision: float [B, N], 1 for tokens still kept.

        Returns:
            float [B, N, 2].
        """
        return F.log_softmax(self.out_conv[-1](self._features(tokens, decision)), dim=-1)

    def scores(self, tokens: Tensor, position: Tensor | None = None, attended: object = None) -> Tensor:
        """Keep scores for inference: z0 - z1, the logit of the keep probability.

        They rank tokens like log p(keep) in the published code. Unlike log p(keep) they do not
        saturate, so confident tokens do not tie. They are computed as one linear output, so the
        exported graph has no softmax.

        Args:
            tokens: float [B, N, C], the remaining patch tokens.
            position, attended: unused; other selectors need them, see `selectors`.

        Returns:
            float [B, N].
        """
        score: Tensor = self.score(self._features(tokens, None), self.out_conv[-1])
        return score
