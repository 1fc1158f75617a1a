"""The four losses of DynamicViT with named parts (paper, equations 12 to 16; published code)."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class LossParts(NamedTuple):
    """Unweighted scalars; `ratio` is the mean over stages."""

    classification: Tensor
    ratio: Tensor
    kl: Tensor
    token: Tensor


class LossWeights(NamedTuple):
    """Published defaults; ratio is 5.0 for deit-b."""

    classification: float = 1.0
    ratio: float = 2.0
    kl: float = 0.5
    token: float = 0.5


def total_loss(parts: LossParts, weights: LossWeights = LossWeights()) -> Tensor:
    """The weighted sum."""
    return torch.stack([part * weight for part, weight in zip(parts, weights)]).sum()


def ratio_loss(decisions: Sequence[Tensor], ratios: Sequence[float]) -> Tensor:
    """Mean over stages and images of (kept fraction - target)^2.

    Args:
        decisions: per stage float [B, N], 1 for kept.
        ratios: per stage target, a fraction of N.
    """
    return torch.stack([(kept.mean(dim=1) - ratio).square().mean() for kept, ratio in zip(decisions, ratios)]).mean()


def kl_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of logits float [B, classes], mean over images."""
    return F.kl_div(F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1), reduction="batchmean",
                    log_target=True)


def token_mse(student: Tensor, teacher: Tensor, decision: Tensor) -> Tensor:
    """Squared difference of normalised tokens [B, N, C], mean over finally kept tokens and channels.

    Zero when nothing is kept. `decision` is float [B, N].
    """
    kept = (decision.detach() > 0.5).to(student.dtype)                     # [B, N]
    # Summed under a mask: picking the kept rows out costs a scatter in the backward.
    return ((student - teacher).square().mean(dim=-1) * kept).sum() / kept.sum().clamp(min=1)


def token_kl(student: Tensor, teacher: Tensor, decision: Tensor) -> Tensor:
    """Per-token KL of auxiliary logits [B, N, classes], mean over finally kept tokens (LV-ViT)."""
    kept = decision > 0.5
    if not kept.any():
        return student.sum() * 0
    return kl_loss(student[kept], teacher[kept])
