"""The table of models that have a name in this package.

Their sizes are from DynamicViT (Rao et al., NeurIPS 2021) with its published checkpoints, and
LV-ViT (Jiang et al., 2021). `digits-s` is the demo model of this package. Besides these, any
VisionTransformer of timm is available as `timm:NAME`.
"""
from __future__ import annotations

from ..config import ModelConfig
from ..errors import ConfigError, did_you_mean
from ..settings.preprocessing import Preprocess

# Given as a backbone, this names timm's pretrained weights of the same architecture.
TIMM_PRETRAINED = "timm-pretrained"
# Names of these weights in timm; positions are interpolated if the image size differs.
PRETRAINED = {"deit-s": "deit_small_patch16_224.fb_in1k", "deit-b": "deit_base_patch16_224.fb_in1k",
              "deit-s-384": "deit_small_patch16_224.fb_in1k"}
_PHOTO = Preprocess(short_side=256)


def _model(name: str, builder: str, width: int, depth: int, heads: int, *, mlp_ratio: float = 4.0,
           image_size: int = 224, preprocess: Preprocess = _PHOTO) -> ModelConfig:
    return ModelConfig(name=name, builder=builder, image_size=(image_size, image_size), patch_size=16,
                       width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio, preprocess=preprocess)


MODELS: dict[str, ModelConfig] = {config.name: config for config in (
    _model("deit-256", "vit", 256, 12, 4),
    _model("deit-s", "vit", 384, 12, 6),
    _model("deit-b", "vit", 768, 12, 12),
    _model("deit-s-384", "vit", 384, 12, 6, image_size=384, preprocess=Preprocess()),
    _model("lvvit-s", "lvvit", 384, 16, 6, mlp_ratio=3.0),
    _model("lvvit-m", "lvvit", 512, 20, 8, mlp_ratio=3.0),
    ModelConfig(name="digits-s", builder="vit", image_size=(64, 64), patch_size=8, width=128, depth=6,
                heads=4, classes=10, stem="conv",
                preprocess=Preprocess(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))),
)}


def get(name: str) -> ModelConfig:
    """The config of the zoo model `name`. Raises ConfigError for an unknown name, with the closest known one."""
    if name not in MODELS:
        raise ConfigError(f"Unknown model {name!r}.{did_you_mean(name, [*MODELS, 'timm:NAME'])}")
    return MODELS[name]
