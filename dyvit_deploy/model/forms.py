"""Inference forms of a model: modules that compute the same result in fewer operations, for the exported graph and for
CUDA graphs of PyTorch.

Each form changes the copy that is deployed, never the model that is trained or that exports are
compared with. Results are equal up to rounding. Modules keep their names in published checkpoints
(new submodules are named below them), because calibration, precision and messages use these names.
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .dynamicvit import DynamicViT
from .lvvit import LVViT
from .pruning import gather_tokens
from .token_scorer import TokenScorer


class SplitLinear(nn.Module):
    """A linear layer over [local, pooled]; the product of `pooled`, one row per image, is computed once.

        Concat(local [B, N, L], Expand(pooled [B, 1, G])) -> MatMul(W)
        ->  MatMul(local, W[:L]) + MatMul(pooled, W[L:])
    """

    def __init__(self, joined: nn.Linear) -> None:
        super().__init__()
        out, half = joined.out_features, joined.in_features // 2
        like: dict[str, Any] = {"device": joined.weight.device, "dtype": joined.weight.dtype}
        self.local, self.pooled = nn.Linear(half, out, bias=False, **like), nn.Linear(half, out, **like)
        with torch.no_grad():
            self.local.weight.copy_(joined.weight[:, :half])
            self.pooled.weight.copy_(joined.weight[:, half:])
            self.pooled.bias.copy_(joined.bias)

    def forward(self, local: Tensor, pooled: Tensor) -> Tensor:
        """[B, N, C/2] and [B, 1, C/2] -> [B, N, C/2]."""
        joined: Tensor = self.local(local) + self.pooled(pooled)
        return joined


class SplitTokenScorer(nn.Module):
    """`TokenScorer.scores` with `SplitLinear`, instead of expanding the mean to every patch."""

    def __init__(self, predictor: TokenScorer) -> None:
        super().__init__()
        first, *rest = predictor.out_conv
        self.in_conv, self.score = predictor.in_conv, predictor.score
        self.out_conv = nn.ModuleList([SplitLinear(first), *rest])

    def scores(self, tokens: Tensor, position: Tensor | None = None, attended: object = None) -> Tensor:
        """float [B, N, C] -> [B, N]."""
        local, others = self.in_conv(tokens).chunk(2, dim=-1)              # [B, N, C/2] twice
        joined, *between, last = self.out_conv
        features = joined(local, others.mean(dim=1, keepdim=True))
        for layer in between:
            features = layer(features)                                     # [B, N, C/2], then [B, N, C/4]
        score: Tensor = self.score(features, last)
        return score


class OneGather(nn.Module):
    """Gathers prefix tokens and kept patches together: one copy of the remaining rows.

        Slice(tokens), GatherElements(patches, kept), Concat  ->  Concat(prefix, kept + P), GatherElements(tokens)
    """

    always: Tensor

    def __init__(self, prefix: int) -> None:
        super().__init__()
        # A buffer, because creating it in each forward would be a kernel launch on a GPU.
        self.register_buffer("always", torch.arange(prefix), persistent=False)

    def forward(self, tokens: Tensor, scores: Tensor, keep: int, prefix: int = 0) -> tuple[Tensor, Tensor]:
        """See `TokenSelector`."""
        kept = scores.topk(keep, dim=1).indices                            # [B, K]
        always = self.always.expand(kept.shape[0], -1)                     # [B, P]
        return gather_tokens(tokens, torch.cat([always, kept + prefix], dim=1)), kept


class ReadAttention(nn.Module):
    """timm's attention, computed for the first `rows` queries only, over all keys."""

    def __init__(self, attn: Attention, rows: int) -> None:
        super().__init__()
        self.rows, self.scale, self.heads = rows, attn.scale, (attn.num_heads, attn.head_dim)
        self.fused_attn = attn.fused_attn
        self.qkv, self.q_norm, self.k_norm = attn.qkv, attn.q_norm, attn.k_norm
        self.norm, self.gate, self.proj = attn.norm, attn.gate, attn.proj

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, R, C]."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)                   # [B, T, H * D] each
        query = self.q_norm(self._heads(query[:, :self.rows]))             # [B, H, R, D]
        key, value = self.k_norm(self._heads(key)), self._heads(value)     # [B, H, T, D]
        out = self.norm(self._attend(query, key, value).transpose(1, 2).flatten(2))  # [B, R, H * D]
        if self.gate is not None:
            out = out * self.gate(x[:, :self.rows]).sigmoid()
        result: Tensor = self.proj(out)
        return result

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B, H, R, D], and [B, H, T, D] twice -> [B, H, R, D]."""
        if self.fused_attn:
            return F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        if self.scale != 1.0:
            query = query * self.scale
        shares = (query @ key.transpose(-2, -1)).softmax(dim=-1)           # [B, H, R, T]
        return shares @ value

    def _heads(self, x: Tensor) -> Tensor:
        """[B, T, H * D] -> [B, H, T, D]."""
        return x.unflatten(-1, self.heads).transpose(1, 2)


class ReadBlock(nn.Module):
    """The last block, computed only for the tokens that the head reads; the others only serve as keys and values.

        attention over T rows, MLP over T rows, head reads row 0  ->  queries and MLP of the P prefix rows alone
    """

    def __init__(self, block: Block, rows: int) -> None:
        super().__init__()
        self.rows, self.attn = rows, ReadAttention(block.attn, rows)
        self.norm1, self.ls1, self.norm2, self.mlp, self.ls2 = (block.norm1, block.ls1, block.norm2, block.mlp,
                                                                block.ls2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, R, C]."""
        x = x[:, :self.rows] + self.ls1(self.attn(self.norm1(x)))
        result: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return result


def split_predictor(model: DynamicViT) -> bool:
    """Computes the part of each predictor's first output layer that is equal for all patches only once."""
    changed = False
    for stage, selector in enumerate(model.score_predictor):
        if isinstance(selector, TokenScorer):
            model.score_predictor[stage], changed = SplitTokenScorer(selector), True
    return changed


def one_gather(model: DynamicViT) -> bool:
    """Copies prefix and kept rows once instead of three times."""
    # A fused token is between the prefix and the patches, so they cannot be gathered together.
    if model.prune is None or model.prune.fuse or model.prune.selector == "structural":
        return False
    like = next(model.parameters()).device
    model.selector = nn.ModuleList(OneGather(model.prefix).to(like) for _ in model.selector)
    return True


def read_block(model: DynamicViT) -> bool:
    """Computes only the rows of the last block that the head reads, unless it reads all tokens."""
    vit: Any = model.backbone
    last = vit.blocks[-1]
    reads_prefix = vit.global_pool == "token" and not isinstance(vit, LVViT) and vit.attn_pool is None
    if not reads_prefix or type(last) is not Block or type(last.attn) is not Attention:
        return False
    vit.blocks[-1] = ReadBlock(last, vit.num_prefix_tokens)
    return True


def fold_scale(model: DynamicViT) -> bool:
    """Folds the factor on the attention's logits into the weights of the query.

        Mul(q, D ** -0.5)  ->  nothing
    """
    changed = False
    for attn in list(model.modules()):
        if type(attn) in (Attention, ReadAttention) and isinstance(attn.q_norm, nn.Identity) and attn.scale != 1.0:
            rows = attn.qkv.out_features // 3
            with torch.no_grad():
                attn.qkv.weight[:rows] *= attn.scale
                if attn.qkv.bias is not None:
                    attn.qkv.bias[:rows] *= attn.scale
            attn.scale, changed = 1.0, True
    return changed


def fold_batch_norm(model: DynamicViT) -> bool:
    """Folds the batch norms of a stem into the convolutions before them.

        Conv(W), BatchNormalization  ->  Conv(W * gamma / sigma, b)
    """
    changed = False
    for parent in model.backbone.patch_embed.modules():
        convolution = ""
        for name, child in list(parent.named_children()):
            # timm's subclasses of BatchNorm2d include an activation, so they do not match.
            if type(child) is nn.BatchNorm2d and convolution:
                setattr(parent, convolution, fuse_conv_bn_eval(getattr(parent, convolution).eval(), child.eval()))
                setattr(parent, name, nn.Identity())
                changed = True
            convolution = name if type(child) is nn.Conv2d else ""
    return changed


FORMS: dict[str, Callable[[DynamicViT], bool]] = {
    "split-predictor": split_predictor, "one-gather": one_gather, "read-block": read_block,
    "fold-scale": fold_scale, "fold-batch-norm": fold_batch_norm,
}


# timm's fused attention scales the query itself, so a factor in the weights would be applied twice.
NOT_WITH_FUSED_ATTENTION = ("fold-scale",)


def plain_attention(model: DynamicViT) -> None:
    """Replaces fused attention by MatMul, Softmax, MatMul.

    The exporter expands the fused operator with a transpose of the key through reshapes of computed
    shape, nine nodes per block; and no runtime needs the opset 23 Attention operator.
    """
    for module in model.modules():
        if getattr(module, "fused_attn", False):
            module.fused_attn = False


def inference_form(model: DynamicViT, leave_out: Collection[str] = (), *,
                   fused_attention: bool = False) -> tuple[DynamicViT, tuple[str, ...]]:
    """A copy of `model` with all forms that apply except `leave_out`, and the names of the applied forms.

    `fused_attention` keeps PyTorch's fused attention, and omits the forms that do not work with it. Graphs are
    exported without it.
    """
    model = copy.deepcopy(model).eval()
    if fused_attention:
        leave_out = (*leave_out, *NOT_WITH_FUSED_ATTENTION)
    else:
        plain_attention(model)
    return model, tuple(name for name, change in FORMS.items() if name not in leave_out and change(model))
