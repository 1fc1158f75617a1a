"""Hyper-parameters as data."""
from __future__ import annotations

import math
from dataclasses import dataclass

from ..config import JsonConfig
from ..errors import ConfigError


@dataclass(frozen=True)
class Recipe(JsonConfig):
    """How one model is trained.

    `lr` is reached after `warmup_epochs` and falls to `lr_min` along a cosine. `backbone_lr` scales
    it for the backbone, which stays frozen for `freeze_epochs`. `images` per epoch; None is all of
    them. `bf16` runs the matrix products in bfloat16.
    """

    epochs: int
    lr: float
    batch: int = 128
    images: int | None = None
    lr_min: float = 1e-5
    backbone_lr: float = 1.0
    freeze_epochs: int = 0
    warmup_epochs: float = 1.0
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    clip_grad: float = 1.0
    ratio_weight: float = 2.0
    kl_weight: float = 0.5
    token_weight: float = 0.5
    bf16: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "lr", "batch"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"Training needs a positive {name}, not {getattr(self, name)}.")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"The seed must lie between 0 and 2**31 - 1, not {self.seed}.")
        if self.images is not None and self.images < self.batch:
            raise ConfigError(f"{self.images} images an epoch do not fill one batch of {self.batch}; "
                              "lower --batch or raise --images.")


DENSE = Recipe(epochs=14, lr=1e-3)
STUDENT = Recipe(epochs=8, lr=1e-3, backbone_lr=0.3, warmup_epochs=0.5)
