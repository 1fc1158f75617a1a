"""Builds backbones: models of the zoo, and any VisionTransformer of timm with its keyword arguments."""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import Mlp, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..artifacts.files import TIMM_PREFIX
from ..checkpoints.configurations import BORDER
from ..config import LARGEST, ModelConfig
from ..errors import ConfigError, did_you_mean, reason, shorten
from ..settings.fields import Arguments, as_arguments, check_choice
from ..settings.preprocessing import Preprocess
from . import zoo
from .lvvit import GridStem, LVViT


class ConvStem(GridStem):
    """Stride-2 convolutions down to the patch grid, each followed by batch norm and ReLU.

    Early convolutions help small ViTs on small data (Xiao et al., 2021).
    """

    def __init__(self, img_size: tuple[int, int], patch_size: int, in_chans: int, embed_dim: int,
                 **_timm_options: Any) -> None:
        super().__init__(img_size, patch_size)
        steps = patch_size.bit_length() - 1
        widths = [in_chans, *(embed_dim >> (steps - 1 - i) for i in range(steps))]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip(widths, widths[1:])):
            size = 2 if i == steps - 1 else 3
            layers += [nn.Conv2d(before, after, size, stride=2, padding=size // 2 if size == 3 else 0, bias=False),
                       nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, height, width] -> [B, N, C]."""
        tokens: Tensor = self.layers(images).flatten(2).transpose(1, 2)    # [B, N, C]
        return tokens


class TokenAndAverageViT(VisionTransformer):
    """Classifies by the class token and the mean of the patches side by side, as DINOv2's linear classifiers do."""

    def __init__(self, num_classes: int, **options: Any) -> None:
        super().__init__(num_classes=0, global_pool="token", **options)
        self.num_classes, self.global_pool = num_classes, TOKEN_AND_AVERAGE
        self.head = nn.Linear(2 * self.embed_dim, num_classes)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """float [B, P + K, C], normalised tokens -> [B, classes]."""
        joined = torch.cat([x[:, 0], x[:, self.num_prefix_tokens:].mean(dim=1)], dim=1)  # [B, 2 * C]
        logits: Tensor = joined if pre_logits else self.head(joined)
        return logits


# timm has no such pooling.
TOKEN_AND_AVERAGE = "token+avg"
# Keyword arguments of timm's VisionTransformer that may be chosen, with the types of their values.
OPTIONS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("num_heads", "reg_tokens", "embed_dim", "depth", "in_chans"), (int,)),
    **dict.fromkeys(("global_pool", "pos_embed", "act_layer", "norm_layer", "mlp_layer"), (str,)),
    **dict.fromkeys(("mlp_ratio", "norm_eps"), (int, float)),
    **dict.fromkeys(("class_token", "no_embed_class", "qkv_bias", "qk_norm", "proj_bias", "scale_attn_norm",
                     "scale_mlp_norm", "pre_norm", "final_norm", "pool_include_prefix", "distilled"), (bool,)),
    "fc_norm": (bool, type(None)), "init_values": (int, float, type(None)), "patch_size": (int, tuple),
}
NOUNS = {int: "a whole number", float: "a number", str: "a word", bool: "True or False", type(None): "None",
         tuple: "a size like 16x16"}
# Those that are fields of a ModelConfig.
SIZES = {"num_heads": "heads", "embed_dim": "width", "depth": "depth", "mlp_ratio": "mlp_ratio",
         "patch_size": "patch_size"}
# Shorter names that users may type, and arguments without effect at inference.
OPTION_ALIASES = {"heads": "num_heads", "width": "embed_dim", "gp": "global_pool"}
TRAINING_ONLY = ("drop_rate", "drop_path_rate", "attn_drop_rate", "proj_drop_rate", "pos_drop_rate", "patch_drop_rate",
                 "weight_init", "fix_init", "dynamic_img_size", "dynamic_img_pad", "pretrained")
MLPS = {"mlp": Mlp, "swiglu": SwiGLUPacked}


# What timm's constructors raise for values that they do not take.
REFUSED = (RuntimeError, TypeError, ValueError, AssertionError, ZeroDivisionError, KeyError, IndexError, OverflowError)


def check_options(options: Arguments) -> dict[str, Any]:
    """The keyword arguments of timm's constructor that matter at inference, by timm's names.

    Raises:
        ConfigError: an argument is unknown, or its value has another type.
    """
    checked: dict[str, Any] = {}
    for name, value in options:
        name = OPTION_ALIASES.get(name, name)
        if name in TRAINING_ONLY:
            continue
        if name not in OPTIONS:
            raise ConfigError(f"Unknown model argument {shorten(name)}.{did_you_mean(name, OPTIONS)}")
        if name in checked:
            raise ConfigError(f"The model argument {name} is given twice; leave one out.")
        if name == "patch_size" and isinstance(value, tuple):
            if len(set(value)) != 1:
                raise ConfigError(f"Patches of {value[0]} x {value[-1]} pixels are not supported, only square ones.")
            value = value[0]
        kinds = " or ".join(NOUNS[kind] for kind in OPTIONS[name])
        if not isinstance(value, OPTIONS[name]) or (isinstance(value, bool) and bool not in OPTIONS[name]):
            raise ConfigError(f"The model argument {name} must be {kinds}, not {shorten(value)}.")
        most = LARGEST.get(SIZES.get(name, ""), LARGEST["width"])
        least = 0 if name in ("reg_tokens", "norm_eps", "init_values") or isinstance(value, bool) else 1e-9
        if isinstance(value, (int, float)) and not least <= value <= most:
            raise ConfigError(f"The model argument {name} must be positive and at most {most}, not {shorten(value)}.")
        if value == "":
            raise ConfigError(f"The model argument {name} must be {kinds}, and is empty.")
        checked[name] = value
    if "norm_eps" in checked and "norm_layer" in checked:
        raise ConfigError("The model arguments norm_eps and norm_layer exclude each other; leave one out.")
    return checked


def _constructed(options: dict[str, Any]) -> dict[str, Any]:
    """`options` with layers instead of their names."""
    options = dict(options)
    if "norm_eps" in options:
        options["norm_layer"] = partial(nn.LayerNorm, eps=options.pop("norm_eps"))
    if "mlp_layer" in options:
        check_choice("mlp_layer", options["mlp_layer"], tuple(MLPS))
        options["mlp_layer"] = MLPS[options["mlp_layer"]]
    # Grey images are read as RGB, and the weights of one channel are applied to their luma.
    if options.pop("in_chans", 3) not in (1, 3):
        raise ConfigError("Images are read as RGB or grey here, so a model has 3 channels or 1; choose in_chans=3.")
    return options


def _build_vit(config: ModelConfig) -> VisionTransformer:
    options: dict[str, Any] = {"embed_layer": ConvStem} if config.stem == "conv" else {}
    options |= dict(norm_layer=partial(nn.LayerNorm, eps=1e-6), embed_dim=config.width, depth=config.depth,
                    num_heads=config.heads, mlp_ratio=config.mlp_ratio, patch_size=config.patch_size)
    options |= _constructed(check_options(config.options))
    build: Any = VisionTransformer
    if options.pop("distilled", False):
        build = VisionTransformerDistilled
    elif options.get("global_pool") == TOKEN_AND_AVERAGE:
        build = TokenAndAverageViT
        del options["global_pool"]
    vit: VisionTransformer = build(img_size=config.image_size, num_classes=config.classes, **options)
    return vit


def _build_timm(config: ModelConfig) -> VisionTransformer:
    return create_timm(str(config.timm_name), img_size=config.image_size, num_classes=config.classes,
                       **_constructed(check_options(config.options)))


BUILD: dict[str, Callable[[ModelConfig], VisionTransformer]] = {
    "vit": _build_vit, "lvvit": LVViT, "timm": _build_timm,
}


def build_backbone(config: ModelConfig) -> VisionTransformer:
    """A timm VisionTransformer with random weights, for `config`. Raises ConfigError if sizes do not fit together."""
    try:
        return BUILD[config.builder](config)
    # timm's constructors check little, and raise errors of Python.
    except REFUSED as error:
        raise ConfigError(f"The model {config.name} cannot be built: {reason(error)}.") from error


def prefix_tokens(config: ModelConfig) -> int:
    """P, the number of tokens of `config` that are not patches."""
    with torch.device("meta"):
        count: int = build_backbone(config).num_prefix_tokens
    return count


def create_timm(name: str, **options: Any) -> VisionTransformer:
    """timm's model `name` with random weights.

    Raises:
        ConfigError: timm has no such model or tag, or the model is not a VisionTransformer.
    """
    architecture, _, tag = name.partition(".")
    if architecture not in timm.list_models():
        raise ConfigError(f"timm has no model {shorten(name)}.{did_you_mean(name, timm.list_models('*vit*'))}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ConfigError(f"timm has no weights {tag!r} of {architecture}; it has {', '.join(tags) or 'none'}.")
    try:
        model = timm.create_model(name, pretrained=False, **options)
    # timm's constructors raise errors of Python for values that they do not take.
    except REFUSED as error:
        raise ConfigError(f"timm cannot create {name!r} with these arguments: {reason(error)}.") from error
    if not isinstance(model, VisionTransformer):
        raise ConfigError(f"timm:{name} is a {type(model).__name__}, not a VisionTransformer; "
                          "only those can be pruned here.")
    return model


def resolve(name: str, options: Arguments = ()) -> ModelConfig:
    """The config of a zoo model, or of any timm VisionTransformer written as `timm:NAME`.

    Args:
        name: the model.
        options: keyword arguments of timm's constructor, see OPTIONS.

    Raises:
        ConfigError: the name or an option is unknown, or the timm model is not a VisionTransformer.
    """
    if not name.startswith(TIMM_PREFIX):
        if name not in zoo.MODELS and timm.is_model(name.partition(".")[0]):
            raise ConfigError(f"Unknown model {name!r}. Did you mean {TIMM_PREFIX + name!r}?")
        return with_options(zoo.get(name), options)
    chosen = check_options(options)
    timm_name = name.removeprefix(TIMM_PREFIX)
    with torch.device("meta"):
        model = create_timm(timm_name, **_constructed(chosen))
    pretrained = model.pretrained_cfg
    size = tuple(pretrained["input_size"][1:])
    patch = model.patch_embed.patch_size
    if patch[0] != patch[1]:
        raise ConfigError(f"{name} has patches of {patch[0]} x {patch[1]} pixels; only square ones are supported.")
    return ModelConfig(
        name=name, builder="timm", timm_name=timm_name, image_size=(size[0], size[1]),
        patch_size=size[0] // model.patch_embed.grid_size[0], width=model.embed_dim, depth=len(model.blocks),
        heads=count_heads(model),
        # timm's feature extractors have no head.
        classes=model.num_classes or 1000, preprocess=timm_preprocess(pretrained, (size[0], size[1])),
        options=as_arguments(chosen),
    )


def with_options(config: ModelConfig, options: Arguments) -> ModelConfig:
    """`config` with other sizes and keyword arguments of timm.

    Raises:
        ConfigError: an option is unknown, or the architecture takes none.
    """
    if not options:
        return config
    if config.builder == "timm":
        return resolve(config.name, as_arguments({**dict(config.options), **check_options(options)}))
    if config.builder != "vit":
        raise ConfigError(f"{config.name} has a fixed architecture; leave out --model-args.")
    chosen = {**dict(config.options), **check_options(options)}
    values = {SIZES[name]: chosen.pop(name) for name in list(chosen) if name in SIZES}
    return dataclasses.replace(config, **values, options=as_arguments(chosen))


def timm_weights(name: str) -> Mapping[str, Any]:
    """timm's description of the pretrained weights `name`, or of the default ones of that architecture."""
    weights: Mapping[str, Any] = timm.models.get_pretrained_cfg(name).to_dict()
    return weights


def placed_prefix(config: ModelConfig) -> int:
    """How many tokens besides the patches have a position of their own."""
    with torch.device("meta"):
        model = build_backbone(dataclasses.replace(config, depth=1))
    return 0 if model.no_embed_class else int(model.num_prefix_tokens)


def timm_preprocess(pretrained: Mapping[str, Any], size: tuple[int, int]) -> Preprocess:
    """The preprocessing that timm's evaluation uses for weights with this `pretrained_cfg`.

    Raises:
        ConfigError: the image would be padded with a border.
    """
    mode, crop = pretrained.get("crop_mode") or "center", pretrained.get("crop_pct") or 0.875
    if mode == "border":
        raise ConfigError(f"{BORDER[0].upper()}{BORDER[1:]}.")
    whole = mode == "squash" and crop == 1.0
    short, long = (None if whole else math.floor(side / crop) for side in sorted(size))
    return Preprocess(short, tuple(pretrained["mean"]), tuple(pretrained["std"]), pretrained["interpolation"],
                      mode == "squash" and not whole, long)


def count_heads(model: VisionTransformer) -> int:
    """Attention heads of the first block, also where it has several attentions in parallel."""
    return next((int(module.num_heads) for module in model.blocks[0].modules() if hasattr(module, "num_heads")), 0)
