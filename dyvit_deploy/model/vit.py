"""The adapter to timm's ViT: runs its parts.

At inference timm's own blocks run unchanged. Training needs masked attention inside them, for
which timm has no hook; the table MASKED_BLOCKS lists the block types that support it.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm.layers import Attention, DropPath
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from ..errors import ConfigError
from .lvvit import LVViT
from .pruning import ATTENTION_EPS, masked_attention, masked_mean


def embed(vit: VisionTransformer, images: Tensor) -> Tensor:
    """float [B, 3, height, width] -> tokens [B, P + N, C]: the input of the first block of `vit`."""
    tokens: Tensor = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
    return tokens


Attend = Callable[[nn.Module, Tensor], Tensor]


def _pre_norm(block: Any, x: Tensor, attend: Attend) -> Tensor:
    x = x + block.drop_path1(block.ls1(attend(block.attn, block.norm1(x))))
    result: Tensor = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return result


def _post_norm(block: Any, x: Tensor, attend: Attend) -> Tensor:
    x = x + block.drop_path1(block.norm1(attend(block.attn, x)))
    result: Tensor = x + block.drop_path2(block.norm2(block.mlp(x)))
    return result


MASKED_BLOCKS: dict[type, Callable[[Any, Tensor, Attend], Tensor]] = {Block: _pre_norm, ResPostBlock: _post_norm}


def _masked_attend(attn: Any, x: Tensor, decision: Tensor, eps: float) -> Tensor:
    """timm's Attention with a masked softmax."""
    batch, count, _ = x.shape
    qkv = attn.qkv(x).reshape(batch, count, 3, attn.num_heads, attn.head_dim)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)               # [B, H, T, D] each
    out = masked_attention(attn.q_norm(query), attn.k_norm(key), value, decision, attn.scale, eps)
    out = attn.norm(out.transpose(1, 2).reshape(batch, count, attn.attn_dim))
    if attn.gate is not None:
        out = out * attn.gate(x).sigmoid()
    result: Tensor = attn.proj_drop(attn.proj(out))
    return result


class Attended(NamedTuple):
    """The attention of a block, before its softmax.

    query, key: float [B, H, T, D], after the norms of the model, if it has them.
    scale: factor on their product.
    class_token: token 0 is a class token.
    kept: float [B, T], 1 for tokens still kept; None: all of them.
    """

    query: Tensor
    key: Tensor
    scale: float
    class_token: bool
    kept: Tensor | None


def check_attention(block: nn.Module) -> None:
    """Raises ConfigError if `observe_attention` does not support the attention of the block."""
    attn = getattr(block, "attn", block)
    if type(attn) is not Attention:
        raise ConfigError(f"The attention of {type(attn).__name__} cannot be read here; choose a timm ViT with the "
                          "standard block, or another --selector.")


def observe_attention(vit: VisionTransformer, block: Any, run: Callable[[], Tensor],
                      kept: Tensor | None = None) -> tuple[Tensor, Attended]:
    """The result of `run`, which runs `block`, and the query and key of its attention.

    Hooks read them, so the block stays unchanged: its result is bit for bit timm's, and exported nodes keep its name.
    """
    seen: list[Tensor] = []
    hooks = [norm.register_forward_hook(lambda _norm, _inputs, output: seen.append(output))
             for norm in (block.attn.q_norm, block.attn.k_norm)]
    try:
        tokens = run()
    finally:
        for hook in hooks:
            hook.remove()
    query, key = seen
    return tokens, Attended(query, key, block.attn.scale, vit.has_class_token, kept)


def set_drop_path(vit: VisionTransformer, rate: float) -> None:
    """Sets stochastic depth, rising linearly over the blocks from 0 to `rate`; 0 removes it."""
    for block, share in zip(vit.blocks, torch.linspace(0, rate, len(vit.blocks)).tolist()):
        for path, _ in list(block.named_modules()):
            parent, _, name = path.rpartition(".")
            if name.startswith("drop_path"):
                setattr(block.get_submodule(parent), name, DropPath(share) if share else nn.Identity())


def masked_block(block: nn.Module, tokens: Tensor, decision: Tensor, eps: float = ATTENTION_EPS) -> Tensor:
    """Runs a transformer block in which no token attends to a dropped token, except that token itself.

    Args:
        tokens: float [B, T, C], prefix tokens included.
        decision: float [B, T], 1 for every prefix token.
        eps: smoothing of the masked softmax.

    Raises:
        ConfigError: the block or its attention has no masked form.
    """
    form = MASKED_BLOCKS.get(type(block))
    if form is None or type(block.attn) is not Attention:
        part = type(block).__name__ if form is None else type(block.attn).__name__
        raise ConfigError(f"{part} has no masked attention here, so this model can be exported but not trained; "
                          "choose a timm ViT with the standard block.")
    return form(block, tokens, lambda attn, x: _masked_attend(attn, x, decision, eps))


def masked_head(vit: VisionTransformer, tokens: Tensor, decision: Tensor) -> Tensor:
    """Logits that do not depend on dropped tokens.

    Args:
        tokens: float [B, P + N, C] after the final norm.
        decision: float [B, N], 1 keeps.

    Returns:
        float [B, classes].

    Raises:
        ConfigError: the pooling has no masked form here.
    """
    prefix = vit.num_prefix_tokens
    logits: Tensor
    if isinstance(vit, LVViT):
        dropped = (decision < 0.5).unsqueeze(-1)                           # [B, N, 1]
        auxiliary = vit.aux_head(tokens[:, prefix:]).masked_fill(dropped, -torch.inf)
        any_kept = decision.amax(dim=1) > 0.5                              # [B]
        # An image without kept patches is classified by its class token alone.
        return vit.join_heads(tokens[:, 0], torch.where(any_kept[:, None, None], auxiliary, 0.0))
    if vit.global_pool == "avg" and not vit.pool_include_prefix:
        pooled = masked_mean(tokens[:, prefix:], decision).squeeze(1)      # [B, C]
        logits = vit.head(vit.head_drop(vit.fc_norm(pooled)))
    elif vit.global_pool == "token":
        logits = vit.forward_head(tokens)
    else:
        raise ConfigError(f"Training with {vit.global_pool!r} pooling is not supported; "
                          "choose a model that pools the class token or the average.")
    return logits
