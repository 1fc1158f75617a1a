"""The token operations of DynamicViT on plain tensors, independent of any model.

Rao et al., "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification",
NeurIPS 2021. Where the paper and the published code differ, these functions follow the code,
because published checkpoints do.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

ATTENTION_EPS = 1e-6


def select_tokens(tokens: Tensor, scores: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The `keep` best-scored tokens, best first.

    Args:
        tokens: float [B, N, C].
        scores: float [B, N]; the highest are kept.
        keep: K, 1 <= K <= N.

    Returns:
        kept tokens [B, K, C] and their positions int64 [B, K] in `tokens`.
    """
    indices = scores.topk(keep, dim=1).indices                             # [B, K]
    return gather_tokens(tokens, indices), indices


class TokenSelector(nn.Module):
    """`select_tokens` as a module, so that exported nodes have the name of their stage."""

    def forward(self, tokens: Tensor, scores: Tensor, keep: int, prefix: int = 0) -> tuple[Tensor, Tensor]:
        """Always keeps the first `prefix` of `tokens` [B, P + N, C], which have no score.

        Returns:
            kept tokens [B, P + K, C] and the positions int64 [B, K] of the kept patches.
        """
        kept, chosen = select_tokens(tokens[:, prefix:], scores, keep)
        return torch.cat([tokens[:, :prefix], kept], dim=1), chosen


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Rows `indices` int64 [B, K] of `tokens` [B, N, C]: [B, K, C]."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def masked_mean(tokens: Tensor, decision: Tensor) -> Tensor:
    """Mean of the tokens that `decision` keeps.

    Args:
        tokens: float [B, N, C].
        decision: float [B, N], 1 keeps and 0 drops.

    Returns:
        float [B, 1, C]; zeros for an image without kept tokens, for which the published code
        divides by zero and returns NaN.
    """
    kept = decision.sum(dim=1, keepdim=True)                               # [B, 1]
    # A count of zero is replaced by one, not clamped: a tiny divisor would blow up the gradient.
    kept = torch.where(kept > 0.5, kept, torch.ones_like(kept))
    return ((tokens * decision.unsqueeze(-1)).sum(dim=1) / kept).unsqueeze(1)


def masked_attention(query: Tensor, key: Tensor, value: Tensor, decision: Tensor, scale: float,
                     eps: float = ATTENTION_EPS) -> Tensor:
    """Attention in which no token attends to a dropped token, except that token itself (paper, equation 11).

    The mask multiplies the exponentials, so its gradient reaches the predictors. The row
    maximum is over all keys and the exponential is float32, as in the published code.

    Args:
        query, key, value: float [B, H, T, D].
        decision: float [B, T], 1 keeps and 0 drops.
        scale: factor on the logits, usually D ** -0.5.
        eps: smoothing, as in the published code; 0 gives exactly the attention over the kept tokens.

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
    # The difference is exactly zero.
    return hard + (soft - soft.detach())


def gumbel_noise(shape: Sequence[int], generator: torch.Generator | None = None,
                 device: torch.device | str | None = None) -> Tensor:
    """Gumbel(0, 1) noise, float32 of `shape`; draws the same values as torch's own Gumbel-softmax."""
    return -torch.empty(tuple(shape), device=device).exponential_(generator=generator).log()


def sample_keep(log_probs: Tensor, noise: Tensor | None = None) -> Tensor:
    """Samples keep (1) or drop (0) per token with a straight-through Gumbel-softmax at temperature 1.

    Args:
        log_probs: float [B, N, 2], log-probabilities of keep (index 0) and drop.
        noise: float [B, N, 2], see `gumbel_noise`; None draws it.

    Returns:
        float [B, N].
    """
    noise = gumbel_noise(log_probs.shape, device=log_probs.device) if noise is None else noise
    soft = (log_probs + noise).softmax(dim=-1)[..., 0]                     # [B, N]
    return straight_through((soft >= 0.5).to(soft.dtype), soft)


def top_k_mask(scores: Tensor, decision: Tensor, keep: Tensor) -> Tensor:
    """A mask of exactly the `keep` best-scored tokens among those still kept; K may differ between images.

    Args:
        scores: float [B, N]; the highest are kept.
        decision: float [B, N], 1 for tokens still kept.
        keep: int64 [B], K per image; if fewer are still kept, all of them stay.

    Returns:
        float [B, N], 1 keeps and 0 drops; without gradient.
    """
    masked = scores.detach().masked_fill(decision < 0.5, -torch.inf)
    # Ranks are distinct even for equal scores.
    rank = masked.argsort(dim=1, descending=True).argsort(dim=1)           # [B, N]
    return ((rank < keep[:, None]) & (decision > 0.5)).to(decision.dtype)


def sample_top_k(log_probs: Tensor, decision: Tensor, keep: Tensor, noise: Tensor | None = None) -> Tensor:
    """Samples exactly `keep` tokens among those still kept, without replacement (Gumbel-top-K).

    The noise on the keep score z0 - z1 is the difference of two Gumbel variables, that is logistic noise, as in
    `sample_keep`. The gradient is that of sigmoids around the threshold between the last kept and the first dropped
    token, constrained to a constant sum K: adding a constant to all scores changes no ranking and gets no gradient.

    Args:
        log_probs: float [B, N, 2], log-probabilities of keep (index 0) and drop.
        decision: float [B, N], 1 for tokens still kept; the others are never sampled.
        keep: int64 [B], K per image; if fewer are still kept, all of them stay.
        noise: float [B, N, 2], see `gumbel_noise`; None draws it.

    Returns:
        float [B, N].
    """
    noise = gumbel_noise(log_probs.shape, device=log_probs.device) if noise is None else noise
    noisy = log_probs + noise
    scores = (noisy[..., 0] - noisy[..., 1]).masked_fill(decision < 0.5, -torch.inf)  # [B, N]
    hard = top_k_mask(scores, decision, keep)
    kept = hard > 0.5
    lowest = scores.masked_fill(~kept, torch.inf).amin(dim=1, keepdim=True)
    highest = scores.masked_fill(kept, -torch.inf).amax(dim=1, keepdim=True)
    # If nothing is kept or nothing is left to drop, the threshold is the score on the other side.
    lowest, highest = (torch.where(one.isfinite(), one, other) for one, other in ((lowest, highest), (highest, lowest)))
    threshold = (0.5 * (lowest + highest)).nan_to_num().detach()           # [B, 1]
    soft = (scores - threshold).sigmoid().detach()
    # Zero for tokens dropped before.
    slope = soft * (1 - soft)                                              # [B, N]
    moved = (slope * scores.nan_to_num(neginf=0.0)).sum(1, keepdim=True) / slope.sum(1, keepdim=True).clamp(min=1e-6)
    return straight_through(hard, (scores - threshold + (moved.detach() - moved)).sigmoid())


def received_attention(query: Tensor, key: Tensor, scale: float, class_token: bool,
                       kept: Tensor | None = None) -> Tensor:
    """The attention that each token receives, averaged over heads and computed in float32.

    It is the attention from the class token, as in EViT (Liang et al., "Not All Patches are What You Need", ICLR
    2022), equation 3; in models without a class token, the mean over all queries.

    Args:
        query, key: float [B, H, T, D].
        scale: factor on the logits, usually D ** -0.5.
        class_token: token 0 is a class token.
        kept: float [B, T], 1 for tokens still kept; None: all of them.

    Returns:
        float32 [B, T], summing to 1; without gradient.
    """
    query, key = query.detach().float(), key.detach().float()
    query = query[:, :, :1] if class_token else query                      # [B, H, Q, D]
    logits = (query * scale) @ key.transpose(-2, -1)                       # [B, H, Q, T]
    if kept is not None:
        logits = logits.masked_fill(kept[:, None, None] < 0.5, -torch.inf)
    shares = logits.softmax(dim=-1).mean(dim=1)                            # [B, Q, T]
    if class_token or kept is None:
        return shares.mean(dim=1)
    return masked_mean(shares, kept.detach()).squeeze(1)


def fuse_tokens(tokens: Tensor, weights: Tensor, kept: Tensor) -> Tensor:
    """Fuses the dropped tokens into one, their weighted sum (EViT, equation 4).

    Args:
        tokens: float [B, N, C].
        weights: float [B, N], the attention that each token receives.
        kept: int64 [B, K], positions of the kept tokens, which are left out; K < N.

    Returns:
        float [B, 1, C].
    """
    dropped = weights.scatter(1, kept, 0.0).unsqueeze(-1)                  # [B, N, 1]
    return (tokens * dropped).sum(dim=1, keepdim=True)


class TokenFuser(nn.Module):
    """`fuse_tokens` as a module, so that exported nodes have the name of their stage."""

    def forward(self, tokens: Tensor, weights: Tensor, kept: Tensor) -> Tensor:
        return fuse_tokens(tokens, weights, kept)
