"""The four losses of DynamicViT (paper, equations 12 to 16; published code)."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class LossParts(NamedTuple):
    """The losses before weighting, scalars; `ratio` is the mean over stages."""

    classification: Tensor
    ratio: Tensor
    kl: Tensor
    token: Tensor


class LossWeights(NamedTuple):
    """Weights of the losses. The defaults are the published ones, except that deit-b has a `ratio` of 5.0."""

    classification: float = 1.0
    ratio: float = 2.0
    kl: float = 0.5
    token: float = 0.5


def total_loss(parts: LossParts, weights: LossWeights = LossWeights()) -> Tensor:
    """The weighted sum of the losses."""
    return torch.stack([part * weight for part, weight in zip(parts, weights)]).sum()


def ratio_loss(decisions: Sequence[Tensor], ratios: Sequence[float]) -> Tensor:
    """Mean over stages and images of (kept fraction - target)^2.

    Args:
        decisions: per stage float [B, N], 1 for kept.
        ratios: per stage target, a fraction of N.
    """
    return torch.stack([(kept.mean(dim=1) - ratio).square().mean() for kept, ratio in zip(decisions, ratios)]).mean()


def kl_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of logits float [B, classes], averaged over images."""
    return F.kl_div(F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1), reduction="batchmean",
                    log_target=True)


def token_mse(student: Tensor, teacher: Tensor, decision: Tensor) -> Tensor:
    """Squared difference of normalised tokens [B, N, C], averaged over the finally kept tokens and channels.

    Zero if nothing is kept. `decision` is float [B, N], 1 for kept.
    """
    kept = (decision.detach() > 0.5).to(student.dtype)                     # [B, N]
    # A sum under a mask: indexing the kept rows would cost a scatter in the backward.
    return ((student - teacher).square().mean(dim=-1) * kept).sum() / kept.sum().clamp(min=1)


def token_kl(student: Tensor, teacher: Tensor, decision: Tensor) -> Tensor:
    """KL per token of auxiliary logits [B, N, classes], averaged over the finally kept tokens (LV-ViT)."""
    kept = decision > 0.5
    if not kept.any():
        return student.sum() * 0
    return kl_loss(student[kept], teacher[kept])
