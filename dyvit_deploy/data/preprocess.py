"""From an image file to model input, as the checkpoint was evaluated.

A Triton repository carries this very file, so it imports nothing of this package when it runs.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from ..config import ImageSpec, Preprocess

RESAMPLING = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR,
              "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
MOST_PIXELS = 178_956_970                   # where Pillow, too, refuses an image as a decompression bomb


def as_rgb(image: Image.Image) -> Image.Image:
    """An RGB image. Of 16 bits of grey the upper 8 count, as of 16 bits of colour; Pillow would cut them off at 255."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def resize_and_crop(image: Image.Image, spec: ImageSpec) -> NDArray[np.uint8]:
    """uint8 [height, width, 3] of the model's size: short side resized, centre cropped.

    The order and rounding are those of torchvision's Resize and CenterCrop on a Pillow image,
    which the published evaluation uses.

    Raises:
        ValueError: an image so long and thin that resizing its short side takes more than MOST_PIXELS.
    """
    preprocess, (height, width) = spec.preprocess, spec.image_size
    resampling = RESAMPLING[preprocess.interpolation]
    image = as_rgb(image)
    if preprocess.short_side is None:
        return np.asarray(image.resize((width, height), resampling))
    short = min(image.size)
    scaled = tuple(side if side == short else int(preprocess.short_side * side / short) for side in image.size)
    scaled = tuple(preprocess.short_side if side == short else side for side in scaled)
    if scaled[0] * scaled[1] > MOST_PIXELS:                                # 1 x 60000 pixels would become gigabytes
        raise ValueError(f"it is too long and thin: {image.width} x {image.height} pixels become {scaled[0]} x "
                         f"{scaled[1]}, more than {MOST_PIXELS}")
    image = image.resize((scaled[0], scaled[1]), resampling)
    left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    # A crop larger than the resized image (wide non-square inputs) pads with black, as Pillow does.
    return np.asarray(image.crop((left, top, left + width, top + height)))


def normalise(images: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float32]:
    """uint8 [B, height, width, 3] -> float32 [B, 3, height, width], scaled to 0..1, then normalised."""
    mean = np.asarray(preprocess.mean, np.float32)
    std = np.asarray(preprocess.std, np.float32)
    scaled = (images.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def scale_and_shift(preprocess: Preprocess) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`normalise` as one product and one sum per channel of raw 0..255 RGB: x * scale + shift."""
    scale = tuple(1 / (255 * std) for std in preprocess.std)
    shift = tuple(-mean / std for mean, std in zip(preprocess.mean, preprocess.std))
    return scale, shift
