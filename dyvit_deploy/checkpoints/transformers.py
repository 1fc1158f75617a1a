"""Reads config.json and preprocessor_config.json of transformers, without that library."""
from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifacts.files import CONFIG
from ..config import ModelConfig
from ..errors import ConfigError
from ..settings.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from .archive import read_json
from .recorded import Recorded, Steps, names_of, numbers

PREPROCESSOR = "preprocessor_config.json"
# `resample` by Pillow's numbers.
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
HALVES = (0.5, 0.5, 0.5)
# By `model_type`: how the published checkpoints of the family prepare images, where no file says so.
FAMILIES = {
    "vit": Steps(HALVES, HALVES, crop=1.0, squash=True, interpolation="bilinear"),
    "deit": Steps(IMAGENET_MEAN, IMAGENET_STD, crop=0.875, squash=True, interpolation="bicubic"),
    "dinov2": Steps(IMAGENET_MEAN, IMAGENET_STD, crop=0.875, squash=False, interpolation="bicubic"),
    "dinov2_with_registers": Steps(IMAGENET_MEAN, IMAGENET_STD, crop=0.875, squash=False, interpolation="bicubic"),
}
# Processors that keep the aspect ratio where their size is one number.
KEEP_ASPECT = re.compile("Bit|CLIP|Dinov2")
# Steps that change pixels, and are not done here.
UNREAD = ("do_convert_grayscale", "do_pad", "do_flip_channel_order", "rescale_offset")
# `hidden_act` by timm's names.
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
               "quick_gelu": "quick_gelu", "relu": "relu", "silu": "silu", "swish": "silu"}
# The family whose interpolation of positions smooths when it shrinks the grid.
ANTIALIASED = "dinov2_with_registers"


def read_config(values: Mapping[str, Any], folder: Path) -> Recorded:
    """The model and preprocessing of a folder that `save_pretrained` wrote, from its config.json (`values`).

    Raises:
        ConfigError: the model is not a ViT, DeiT or DINOv2, or has a part that timm's does not have.
        KeyError, TypeError, ValueError: a value is missing or of another type.
    """
    family = str(values.get("model_type") or _family(values))
    if family not in FAMILIES:
        raise ConfigError(f"it is a {family[:40]!r}, and of transformers {', '.join(sorted(FAMILIES))} are read here")
    steps, size = _steps(folder / PREPROCESSOR)
    return Recorded(CONFIG, config=_model(values, family), image_size=size, steps=steps,
                    class_names=_labels(values.get("id2label")), usual=FAMILIES[family],
                    resampling="bicubic, antialiased" if family == ANTIALIASED else "bicubic")


def _family(values: Mapping[str, Any]) -> str:
    """By the class, in configurations without a `model_type`."""
    name = str((values.get("architectures") or ["model without a type"])[0])
    return {"ViT": "vit", "DeiT": "deit", "Dinov2": "dinov2", "Dinov2WithRegisters": "dinov2_with_registers"}.get(
        name.partition("For")[0].removesuffix("Model"), name)


def _model(values: Mapping[str, Any], family: str) -> ModelConfig:
    side = values.get("image_size", 224)
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    hidden = int(values["hidden_size"])
    activation = str(values.get("hidden_act", "gelu"))
    if activation not in ACTIVATIONS:
        raise ConfigError(f"its hidden_act {activation!r} is not one of {', '.join(ACTIVATIONS)}")
    dino, options = family.startswith("dinov2"), dict[str, Any]()
    options["norm_eps"] = float(values.get("layer_norm_eps", 1e-6 if dino else 1e-12))
    options["act_layer"] = ACTIVATIONS[activation]
    options["qkv_bias"] = bool(values.get("qkv_bias", True))
    inner = int(values.get("intermediate_size", 4 * hidden))
    if dino:
        inner = int(hidden * float(values.get("mlp_ratio", 4)))
        options |= {"init_values": 1.0, "global_pool": "token+avg"}
        if values.get("use_swiglu_ffn"):
            # Two thirds, rounded up to a multiple of 8, for the gate and for the value.
            inner = 2 * ((int(inner * 2 / 3) + 7) // 8 * 8)
            options |= {"mlp_layer": "swiglu", "act_layer": "silu"}
    if family == ANTIALIASED:
        options |= {"reg_tokens": int(values.get("num_register_tokens", 4)), "no_embed_class": True}
    if family == "deit":
        teacher = "WithTeacher" in str(values.get("architectures"))
        options |= {"distilled": True} if teacher else {"reg_tokens": 1}
    return ModelConfig(
        name=family, builder="vit", image_size=(int(height), int(width)), patch_size=int(values.get("patch_size", 16)),
        width=hidden, depth=int(values["num_hidden_layers"]), heads=int(values["num_attention_heads"]),
        # Truncated to `inner` again where the layer is made.
        mlp_ratio=inner / hidden if int(hidden * (inner / hidden)) == inner else (inner + 0.5) / hidden,
        options=tuple(sorted(options.items())))


def _steps(path: Path) -> tuple[Steps, tuple[int, int] | None]:
    """The preprocessing in `path`, and the (height, width) that it makes; nothing if there is no such file."""
    if not path.is_file():
        return Steps(), None
    values = read_json(path)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path.name} is not a description of preprocessing")
    factor = values.get("rescale_factor", 1 / 255)
    if not values.get("do_resize", True) or not values.get("do_rescale", True) or abs(factor * 255 - 1) > 1e-6:
        raise ConfigError(f"{path.name} does not resize, or does not scale pixels to 0..1, which is always done here")
    if named := [name for name in UNREAD if values.get(name)]:
        raise ConfigError(f"{path.name} has {named[0]}, which is not supported")
    plain = not values.get("do_normalize", True)
    mean = (0.0,) * 3 if plain else numbers(values.get("image_mean"))
    std = (1.0,) * 3 if plain else numbers(values.get("image_std"))
    size, kind = values.get("size", {}), str(values.get("image_processor_type") or values.get("feature_extractor_type"))
    if isinstance(size, int):
        size = {"shortest_edge": size} if KEEP_ASPECT.search(kind) else {"height": size, "width": size}
    height, width = size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge"))
    crop = values.get("crop_size", height) if values.get("do_center_crop", False) else None
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    model = (int(crop["height"]), int(crop["width"])) if crop else (int(height), int(width))
    if height != width:
        raise ConfigError(f"{path.name} resizes to {height} x {width}, and only squares are read from there; give "
                          "--image-size and --crop")
    interpolation = RESAMPLING.get(values.get("resample", 2))
    return Steps(mean, std, None, int(height), "shortest_edge" not in size, interpolation), model


def _labels(value: Any) -> tuple[str, ...] | None:
    """The names in `id2label`, None if they are the placeholders LABEL_0, LABEL_1, ..."""
    names = names_of(value)
    return None if not names or all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names
