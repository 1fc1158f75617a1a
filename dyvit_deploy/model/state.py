"""Fits the tensors of a checkpoint to a model: names of older versions, positions, channels."""
from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from ..errors import CheckpointError
from .dynamicvit import DynamicViT
from .identify import PREDICTOR, check_channels
from .lvvit import LVViT

PATCHES = "patch_embed.proj.weight"
# Of red, green and blue in grey (ITU-R 601-2), as Pillow converts.
LUMA = (0.299, 0.587, 0.114)
# A message lists so many names.
LISTED = 3
# Types of weights, and of counters beside them.
REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)


def published_name(name: str) -> str:
    """The name of a tensor in published checkpoints, where the backbone has no prefix."""
    return name.removeprefix("backbone.")


def fit_state(model: DynamicViT, state: Mapping[str, Tensor], where: str, grid: tuple[int, int] | None,
              resampling: str, beside: Collection[str] = ()) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors that `model` takes, under published names, and a statement about each change that was necessary.

    Args:
        state: the tensors of a checkpoint, under timm's names.
        where: the file, for messages.
        grid: rows and columns of the patches that it was trained on; None if that is not recorded.
        resampling: how to interpolate positions: "bicubic", or "bicubic, antialiased".
        beside: names of tensors that may be left out.

    Raises:
        CheckpointError: a name or shape does not match.
    """
    expected = {published_name(name): tensor for name, tensor in model.state_dict().items()}
    adapted = list[str]()
    state = _timm_names(model, dict(state), expected, adapted)
    # A dense file has no ranking.
    if model.prune and model.prune.selector == "random":
        expected = {name: value for name, value in expected.items() if name in state or not name.startswith(PREDICTOR)}
    if left_out := [name for name in state if name not in expected and name in beside]:
        more = f" and {len(left_out) - LISTED} more" if len(left_out) > LISTED else ""
        for name in left_out:
            # A layer of this width may be a part of the model that was wrapped.
            if state[name].shape[-1:] in ((model.config.width,), (2 * model.config.width,)):
                raise CheckpointError(f"{where} has the tensor {name!r} beside the model, which may be a layer that "
                                      f"{model.config.name} lacks; save the state_dict() of the model alone.")
        adapted.append(f"ignored {', '.join(left_out[:LISTED])}{more}, which are not part of the wrapped model")
        state = {name: tensor for name, tensor in state.items() if name not in left_out}
    if "pos_embed" in expected and "pos_embed" in state:
        state["pos_embed"], old = _resample(model, state["pos_embed"], grid, resampling)
        if old:
            rows, columns = model.config.grid
            adapted.append(f"positions interpolated from {old[0]} x {old[1]} to {rows} x {columns} patches")
    if PATCHES in state and PATCHES in expected and expected[PATCHES].shape[1] == len(LUMA):
        check_channels(state, where)
        state[PATCHES], changed = _as_rgb(state[PATCHES])
        adapted += ["the weights of its one channel are applied to the luma of RGB images"] * changed
    _check(model, state, expected, where)
    return state, tuple(adapted)


def _timm_names(model: DynamicViT, state: dict[str, Tensor], expected: Mapping[str, Tensor],
                adapted: list[str]) -> dict[str, Tensor]:
    """`state` with the names of this version of timm, whose own filter knows those of older ones and of CLIP.

    What the filter resizes is appended to `adapted`; tensors that have timm's names already are not resized here.
    """
    ours = {name: tensor for name, tensor in state.items() if name.startswith(PREDICTOR)}
    rest = {name: tensor for name, tensor in state.items() if name not in ours}
    missing = [name for name in expected if name not in state and not name.startswith((PREDICTOR, "head"))]
    if isinstance(model.backbone, LVViT) or not missing:
        return state
    try:
        with _timm_lines() as lines:
            renamed: dict[str, Tensor] = checkpoint_filter_fn(dict(rest), model.backbone)
    # The filter raises many kinds of errors for unknown input; the check of names then reports the mismatch.
    except (KeyError, RuntimeError, ValueError, AttributeError, AssertionError, IndexError, TypeError):
        return state
    kept = {name: rest[name] for name in ("pos_embed", PATCHES) if name in rest and rest[name].ndim in (3, 4)}
    adapted += [f"timm: {line}" for line in lines if not kept]
    return ours | renamed | kept


@contextmanager
def _timm_lines() -> Iterator[list[str]]:
    """What timm logs within the block, in place of its output."""
    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage().rstrip("."))

    lines: list[str] = []
    logger, handler = logging.getLogger("timm"), Lines()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def _as_rgb(weight: Tensor) -> tuple[Tensor, bool]:
    """The weight [C, 3, height, width] of the patch embedding, and whether it was made from one of one channel."""
    if weight.ndim != 4 or weight.shape[1] != 1:
        return weight, False
    return weight * torch.tensor(LUMA, dtype=weight.dtype).reshape(1, 3, 1, 1), True


def check_tensors(state: Mapping[str, Tensor], where: object) -> None:
    """Raises CheckpointError if a tensor, from the file `where`, is none that a model can be made of as it is."""
    for name, tensor in state.items():
        kinds = {"sparse": tensor.layout != torch.strided, "quantised": tensor.is_quantized, "nested": tensor.is_nested,
                 "without values (on the meta device)": tensor.is_meta,
                 str(tensor.dtype): tensor.dtype not in (*REAL, *WHOLE)}
        if kind := next((kind for kind, found in kinds.items() if found), ""):
            raise CheckpointError(f"{where}: the tensor {name!r} is {kind}, and weights are read as float16, bfloat16, "
                                  "float32 or float64; convert them before saving.")


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors with NaN or infinite values."""
    return [name for name, tensor in state.items()
            if tensor.is_floating_point() and not bool(tensor.isfinite().all())]


def check_finite(model: DynamicViT, where: object) -> None:
    """Raises CheckpointError if a weight of `model`, from the file `where`, is NaN or infinite."""
    if bad := list(map(published_name, not_finite(model.state_dict()))):
        more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise CheckpointError(f"{where} has NaN or infinite values in {bad[0]!r}{more}, so its training diverged; take "
                              "an earlier checkpoint.")


def _check(model: DynamicViT, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    name = model.config.name
    for tensor in expected:
        if tensor not in state:
            why = ("it has no classifier, so train one on it with --backbone" if tensor == "head.weight" else
                   "it is incomplete or of another model")
            raise CheckpointError(f"{where} lacks the tensor {tensor!r} of {name}; {why}.")
    for tensor, value in state.items():
        if tensor not in expected:
            raise CheckpointError(f"{where} has the tensor {tensor!r}, which {name} does not; "
                                  "it is of another model.")
        if value.is_floating_point() != expected[tensor].is_floating_point():
            raise CheckpointError(f"{where}: tensor {tensor!r} is {value.dtype}, and {name} needs "
                                  f"{expected[tensor].dtype}; convert it before saving.")
        if value.shape != expected[tensor].shape:
            hint = ("" if tensor != "pos_embed" and not tensor.startswith(PREDICTOR) else
                    " Give the size it was trained at with --image-size.")
            raise CheckpointError(f"{where}: tensor {tensor!r} has shape {list(value.shape)}, "
                                  f"{name} needs {list(expected[tensor].shape)}.{hint}")


def _resample(model: DynamicViT, stored: Tensor, grid: tuple[int, int] | None, resampling: str,
              ) -> tuple[Tensor, tuple[int, int] | None]:
    """The positional embedding [1, P + N, C] for the model's grid, and the grid that it was interpolated from, if it
    was.

    Positions are interpolated when their recorded grid differs, or when it is unknown and their number does not fit.
    """
    backbone: Any = model.backbone
    prefix = 0 if backbone.no_embed_class else model.prefix
    if stored.ndim != 3:
        return stored, None
    patches = stored.shape[1] - prefix
    if grid is None:
        side = math.isqrt(max(patches, 0))
        grid = model.config.grid if patches == model.config.patches else (side, side)
    # The caller checks the shape and names a mismatch.
    if grid == model.config.grid or math.prod(grid) != patches:
        return stored, None
    if resampling == "bicubic":
        moved = stored[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2)  # [1, C, rows, columns]
        moved = F.interpolate(moved.float(), size=model.config.grid, mode="bicubic", align_corners=False)
        return torch.cat([stored[:, :prefix], moved.to(stored.dtype).flatten(2).transpose(1, 2)], dim=1), grid
    resampled: Tensor = resample_abs_pos_embed(stored, new_size=list(model.config.grid), old_size=list(grid),
                                               num_prefix_tokens=prefix)
    return resampled, grid
