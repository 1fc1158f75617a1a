"""How images become the input of a model."""
from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ConfigError
from .fields import JsonConfig, check_choice, numbers_text

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
# Pixels. Beyond all models that exist; files that claim more are damaged or hostile.
LARGEST_SIDE = 16_384


@dataclass(frozen=True)
class Preprocess(JsonConfig):
    """How a photo becomes model input: resize, centre crop, scale to 0..1, normalise.

    `short_side` is the length of the shorter edge before the centre crop, in pixels; None resizes straight to the input
    size. For inputs that are not square, the image covers `short_side` along the input's shorter side and `long_side`
    (None: the same) along its longer one, as in timm. With `squash`, images become exactly so large, whatever their
    aspect ratio. `mean` and `std` apply to RGB scaled to 0..1.
    """

    short_side: int | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bicubic"
    squash: bool = False
    long_side: int | None = None

    def __post_init__(self) -> None:
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        numbers = (*self.mean, *self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, numbers)) or min(self.std) <= 0:
            raise ConfigError("Preprocessing needs three means and three positive standard deviations.")
        if max(self.mean) > 1:
            raise ConfigError(f"Mean and std are of colours from 0 to 1, and a mean of {max(self.mean):g} is above; "
                              "divide both by 255.")
        short, long = self.short_side, self.long_side
        if any(side is not None and not 1 <= side <= LARGEST_SIDE for side in (short, long)):
            raise ConfigError(f"Images are resized to sides from 1 to {LARGEST_SIDE} pixels, not {short} and {long}.")
        if long and (short is None or short > long):
            raise ConfigError(f"Images cannot be resized to a long side of {long} pixels and a short one of {short}.")
        if long == short:
            object.__setattr__(self, "long_side", None)

    @property
    def resize(self) -> str:
        """How images are resized, in words."""
        if self.short_side is None:
            return "resized without crop"
        sides = f"{self.short_side} x {self.long_side or self.short_side}"
        if self.squash:
            return f"resized to {sides}"
        return f"covering {sides}" if self.long_side else f"short side {self.short_side}"

    def describe(self) -> str:
        """All steps in words, for messages."""
        return f"mean {numbers_text(self.mean)}, std {numbers_text(self.std)}, {self.resize}, {self.interpolation}"
