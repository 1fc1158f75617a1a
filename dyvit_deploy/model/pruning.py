"""The token maths of DynamicViT, on plain tensors; knows no model.

Rao et al., "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification",
NeurIPS 2021. Where paper and published code differ, these follow the code, because
published checkpoints do.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION_EPS = 1e-6


def select_tokens(tokens: Tensor, scores: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The `keep` best-scored tokens, best first.

    Args:
        tokens: float [B, N, C].
        scores: float [B, N]; higher is more worth keeping.
        keep: K, 1 <= K <= N.

    Returns:
        kept tokens [B, K, C] and their positions int64 [B, K] in `tokens`.
    """
    indices = scores.topk(keep, dim=1).indices                             # [B, K]
    return gather_tokens(tokens, indices), indices


class TokenSelector(nn.Module):
    """`select_tokens` as a module, so that exported nodes carry the name of their stage."""

    def forward(self, tokens: Tensor, scores: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        return select_tokens(tokens, scores, keep)


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Rows `indices` int64 [B, K] of `tokens` [B, N, C]: [B, K, C]."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def masked_mean(tokens: Tensor, decision: Tensor) -> Tensor:
    """Mean of the tokens that `decision` keeps.

    Args:
        tokens: float [B, N, C].
        decision: float [B, N], 1 keeps and 0 drops.

    Returns:
        float [B, 1, C]; zeros for an image that lost every token, where the published code
        divides by zero and ends in NaN.
    """
    kept = decision.sum(dim=1, keepdim=True)                               # [B, 1]
    # The count is replaced, not clamped: a tiny divisor would blow up the gradient instead.
    kept = torch.where(kept > 0.5, kept, torch.ones_like(kept))
    return ((tokens * decision.unsqueeze(-1)).sum(dim=1) / kept).unsqueeze(1)


def masked_attention(query: Tensor, key: Tensor, value: Tensor, decision: Tensor, scale: float,
                     eps: float = ATTENTION_EPS) -> Tensor:
    """Attention in which dropped tokens are seen by nobody but themselves (paper, equation 11).

    The mask multiplies the exponentials, so its gradient reaches the predictors; the row
    maximum runs over all keys and the exponential is float32, as in the published code.

    Args:
        query, key, value: float [B, H, T, D].
        decision: float [B, T], 1 keeps and 0 drops.
        scale: factor on the logits, usually D ** -0.5.
        eps: smoothing of the published code; 0 gives exactly the attention over kept tokens.

    Returns:
        float [B, H, T, D] in the dtype of `value`.
    """
    count = query.shape[2]
    logits = (query * scale) @ key.transpose(-2, -1)                       # [B, H, T, T]
    itself = torch.eye(count, dtype=decision.dtype, device=decision.device)
    seen = decision[:, None, None, :] * (1 - itself) + itself              # [B, 1, T, T]
    logits = logits.float()
    weights = (logits - logits.amax(dim=-1, keepdim=True)).exp() * seen
    weights = (weights + eps / count) / (weights.sum(dim=-1, keepdim=True) + eps)
    return weights.to(value.dtype) @ value


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard` with the gradient of `soft`."""
    return hard + (soft - soft.detach())                                   # the difference is exactly zero


def sample_keep(log_probs: Tensor) -> Tensor:
    """Draws keep (1) or drop (0) per token with a straight-through Gumbel-softmax at temperature 1.

    Args:
        log_probs: float [B, N, 2], log-probabilities of keep (index 0) and drop.

    Returns:
        float [B, N].
    """
    return F.gumbel_softmax(log_probs, tau=1.0, hard=True, dim=-1)[..., 0]
