"""The token maths of DynamicViT, on plain tensors; knows no model.

Rao et al., "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification",
NeurIPS 2021. Where paper and published code differ, these follow the code, because
published checkpoints do.
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
        scores: float [B, N]; higher is more worth keeping.
        keep: K, 1 <= K <= N.

    Returns:
        kept tokens [B, K, C] and their positions int64 [B, K] in `tokens`.
    """
    indices = scores.topk(keep, dim=1).indices                             # [B, K]
    return gather_tokens(tokens, indices), indices


class TokenSelector(nn.Module):
    """`select_tokens` as a module, so that exported nodes carry the name of their stage."""

    def forward(self, tokens: Tensor, scores: Tensor, keep: int, prefix: int = 0) -> tuple[Tensor, Tensor]:
        """The first `prefix` of `tokens` [B, P + N, C] stay and have no score: [B, P + K, C], positions [B, K]."""
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


def gumbel_noise(shape: Sequence[int], generator: torch.Generator | None = None,
                 device: torch.device | str | None = None) -> Tensor:
    """Gumbel(0, 1) noise, float32 of `shape`, in the way and order of torch's own Gumbel-softmax."""
    return -torch.empty(tuple(shape), device=device).exponential_(generator=generator).log()


def sample_keep(log_probs: Tensor, noise: Tensor | None = None) -> Tensor:
    """Draws keep (1) or drop (0) per token with a straight-through Gumbel-softmax at temperature 1.

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
    """Exactly the `keep` best-scored tokens of those still kept, for another number in each image.

    Args:
        scores: float [B, N]; higher is more worth keeping.
        decision: float [B, N], 1 for tokens still kept.
        keep: int64 [B], K per image; all that are left where K is more.

    Returns:
        float [B, N], 1 keeps and 0 drops; without gradient.
    """
    hidden = scores.detach().masked_fill(decision < 0.5, -torch.inf)
    rank = hidden.argsort(dim=1, descending=True).argsort(dim=1)           # [B, N]; equal scores still rank apart
    return ((rank < keep[:, None]) & (decision > 0.5)).to(decision.dtype)


def sample_top_k(log_probs: Tensor, decision: Tensor, keep: Tensor, noise: Tensor | None = None) -> Tensor:
    """Draws exactly `keep` tokens of those still kept, without replacement (Gumbel-top-K).

    The noise on the keep score z0 - z1 is the difference of two Gumbel variables, logistic noise, as in
    `sample_keep`. The gradient is that of sigmoids around the threshold between the last token kept and the first
    one dropped, whose sum stays K: adding the same to all scores changes no ranking, and gets no gradient.

    Args:
        log_probs: float [B, N, 2], log-probabilities of keep (index 0) and drop.
        decision: float [B, N], 1 for tokens still kept; the others are not drawn.
        keep: int64 [B], K per image; all that are left where K is more.
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
    # Nothing kept, or nothing left to drop: the other side of the threshold stands for both.
    lowest, highest = (torch.where(one.isfinite(), one, other) for one, other in ((lowest, highest), (highest, lowest)))
    threshold = (0.5 * (lowest + highest)).nan_to_num().detach()           # [B, 1]
    soft = (scores - threshold).sigmoid().detach()
    slope = soft * (1 - soft)                                              # 0 for tokens that are gone
    moved = (slope * scores.nan_to_num(neginf=0.0)).sum(1, keepdim=True) / slope.sum(1, keepdim=True).clamp(min=1e-6)
    return straight_through(hard, (scores - threshold + (moved.detach() - moved)).sigmoid())


def received_attention(query: Tensor, key: Tensor, scale: float, class_token: bool,
                       kept: Tensor | None = None) -> Tensor:
    """How much attention each token receives, mean over heads, computed in float32.

    From the class token, as in EViT (Liang et al., "Not All Patches are What You Need", ICLR 2022), equation 3;
    in models without one, the mean over all queries.

    Args:
        query, key: float [B, H, T, D].
        scale: factor on the logits, usually D ** -0.5.
        class_token: token 0 is one.
        kept: float [B, T], 1 for tokens that are still there; None: all are.

    Returns:
        float32 [B, T], summing to 1; without gradient.
    """
    query, key = query.detach().float(), key.detach().float()
    asking = query[:, :, :1] if class_token else query                     # [B, H, Q, D]
    logits = (asking * scale) @ key.transpose(-2, -1)                      # [B, H, Q, T]
    if kept is not None:
        logits = logits.masked_fill(kept[:, None, None] < 0.5, -torch.inf)
    shares = logits.softmax(dim=-1).mean(dim=1)                            # [B, Q, T]
    if class_token or kept is None:
        return shares.mean(dim=1)
    return masked_mean(shares, kept.detach()).squeeze(1)


def fuse_tokens(tokens: Tensor, weights: Tensor, kept: Tensor) -> Tensor:
    """The dropped tokens as one: their weighted sum (EViT, equation 4).

    Args:
        tokens: float [B, N, C].
        weights: float [B, N], shares of the attention.
        kept: int64 [B, K], positions of the others; K < N.

    Returns:
        float [B, 1, C].
    """
    dropped = weights.scatter(1, kept, 0.0).unsqueeze(-1)                  # [B, N, 1]
    return (tokens * dropped).sum(dim=1, keepdim=True)


class TokenFuser(nn.Module):
    """`fuse_tokens` as a module, likewise."""

    def forward(self, tokens: Tensor, weights: Tensor, kept: Tensor) -> Tensor:
        return fuse_tokens(tokens, weights, kept)
