"""Renames the tensors of other libraries to those of timm's VisionTransformer.

Each table maps a pattern to a name, into which the groups of the pattern are put. Tensors that only training needs have
no name. The names are those that transformers, versions 4 and 5, and torchvision save.
"""
from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import CheckpointError

_BLOCK = r"(?:encoder\.)?layers?\.(\d+)\."
# ViT, DeiT, DINOv2 with and without registers.
TRANSFORMERS: tuple[tuple[str, str | None], ...] = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.mask_token", None),
    (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", "patch_embed.proj.{}"),
    (_BLOCK + r"attention\.attention\.(query|key|value)\.(weight|bias)", "blocks.{}.attn.{}.{}"),
    (_BLOCK + r"attention\.([qkv])_proj\.(weight|bias)", "blocks.{}.attn.{}.{}"),
    (_BLOCK + r"attention\.(?:output\.dense|o_proj)\.(weight|bias)", "blocks.{}.attn.proj.{}"),
    (_BLOCK + r"layernorm_before\.(weight|bias)", "blocks.{}.norm1.{}"),
    (_BLOCK + r"layernorm_after\.(weight|bias)", "blocks.{}.norm2.{}"),
    (_BLOCK + r"intermediate\.dense\.(weight|bias)", "blocks.{}.mlp.fc1.{}"),
    (_BLOCK + r"output\.dense\.(weight|bias)", "blocks.{}.mlp.fc2.{}"),
    (_BLOCK + r"(norm[12]|mlp\.fc[12])\.(weight|bias)", "blocks.{}.{}.{}"),
    # Gate and value of SwiGLU in one matrix, as in timm's SwiGLUPacked.
    (_BLOCK + r"mlp\.weights_in\.(weight|bias)", "blocks.{}.mlp.fc1.{}"),
    (_BLOCK + r"mlp\.(gate|up)_proj\.(weight|bias)", "blocks.{}.mlp.{}.{}"),
    (_BLOCK + r"mlp\.(?:weights_out|down_proj)\.(weight|bias)", "blocks.{}.mlp.fc2.{}"),
    (_BLOCK + r"layer_scale([12])\.lambda1", "blocks.{}.ls{}.gamma"),
    (r"layernorm\.(weight|bias)", "norm.{}"),
    (r"pooler\.dense\.(?:weight|bias)", None),
    (r"(?:cls_)?classifier\.(weight|bias)", "head.{}"),
    (r"distillation_classifier\.(weight|bias)", "head_dist.{}"),
)
_LAYER = r"encoder\.layers\.encoder_layer_(\d+)\."
TORCHVISION: tuple[tuple[str, str | None], ...] = (
    (r"class_token", "cls_token"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"conv_proj\.(weight|bias)", "patch_embed.proj.{}"),
    (_LAYER + r"ln_([12])\.(weight|bias)", "blocks.{}.norm{}.{}"),
    (_LAYER + r"self_attention\.in_proj_(weight|bias)", "blocks.{}.attn.qkv.{}"),
    (_LAYER + r"self_attention\.out_proj\.(weight|bias)", "blocks.{}.attn.proj.{}"),
    (_LAYER + r"mlp\.(?:0|linear_1)\.(weight|bias)", "blocks.{}.mlp.fc1.{}"),
    (_LAYER + r"mlp\.(?:3|linear_2)\.(weight|bias)", "blocks.{}.mlp.fc2.{}"),
    (r"encoder\.ln\.(weight|bias)", "norm.{}"),
    (r"(?:heads\.)?head\.(weight|bias)", "head.{}"),
)
# DINOv2's own code; the rest of its names are timm's.
DINOV2: tuple[tuple[str, str | None], ...] = (
    (r"mask_token", None),
    (r"register_tokens", "reg_token"),
    (r"blocks\.(\d+)\.mlp\.w12\.(weight|bias)", "blocks.{}.mlp.fc1.{}"),
    (r"blocks\.(\d+)\.mlp\.w3\.(weight|bias)", "blocks.{}.mlp.fc2.{}"),
)
LAYOUTS = {"transformers": TRANSFORMERS, "torchvision": TORCHVISION, "DINOv2": DINOV2}
# Separate tensors of a block that timm keeps in one, joined in this order along the outputs.
JOINED = (("attn", ("query", "key", "value"), "qkv"), ("attn", ("q", "k", "v"), "qkv"), ("mlp", ("gate", "up"), "fc1"))


def to_timm(state: Mapping[str, Tensor], layout: str | None, path: object) -> dict[str, Tensor]:
    """`state` with timm's names; query, key and value joined to one tensor [3 * C, C]. Unknown names stay.

    Args:
        layout: a key of LAYOUTS; with any other value, nothing is renamed.
        path: the file, for messages.

    Raises:
        CheckpointError: two tensors get one name, or a block lacks a query, key or value.
    """
    table = LAYOUTS.get(layout or "")
    if table is None:
        return dict(state)
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = _renamed(name, table)
        if new in renamed:
            raise CheckpointError(f"{path} has two tensors for {new!r}; it is damaged, save it again.")
        if new is not None:
            renamed[new] = tensor
    _join(renamed, path)
    _place_tokens(renamed)
    return renamed


def _renamed(name: str, table: tuple[tuple[str, str | None], ...]) -> str | None:
    for pattern, new in table:
        if match := re.fullmatch(pattern, name):
            return new and new.format(*match.groups())
    return name


def _join(state: dict[str, Tensor], path: object) -> None:
    for module, parts, joined in JOINED:
        for name in [name for name in state if re.fullmatch(rf"blocks\.\d+\.{module}\.{parts[0]}\.\w+", name)]:
            block, kind = name.split(".")[1], name.split(".")[-1]
            tensors = [state.pop(f"blocks.{block}.{module}.{part}.{kind}", None) for part in parts]
            if any(tensor is None for tensor in tensors):
                raise CheckpointError(f"{path} lacks one of {', '.join(parts)} in block {block}; it is incomplete, "
                                      "copy it again.")
            whole = [tensor for tensor in tensors if tensor is not None]
            if any(tensor.ndim == 0 or tensor.shape[1:] != whole[0].shape[1:] for tensor in whole):
                raise CheckpointError(f"{path} has {', '.join(parts)} of different shapes in block {block}; it is "
                                      "damaged, copy it again.")
            state[f"blocks.{block}.{module}.{joined}.{kind}"] = torch.cat(whole)


def _alike(token: Tensor | None, positions: Tensor | None) -> bool:
    """True for [1, 1, C] and [1, N, C]."""
    return (token is not None and positions is not None and token.ndim == positions.ndim == 3
            and token.shape[2] == positions.shape[2])


def _place_tokens(state: dict[str, Tensor]) -> None:
    """Gives the tokens beside the class token the form that timm's model has for them."""
    # Without a head of its own, DeiT's distillation token is a register, with a position.
    if "dist_token" in state and "head_dist.weight" not in state:
        state["reg_token"] = state.pop("dist_token")
    # DINOv2 adds registers after the positions: only the class token has one, which is part of the token in timm.
    elif "reg_token" in state and _alike(state.get("cls_token"), state.get("pos_embed")):
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
