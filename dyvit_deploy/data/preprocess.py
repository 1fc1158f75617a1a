"""Preprocessing of images, as in the evaluation of the checkpoint.

This file is copied into Triton repositories, so at run time it imports nothing from this package.
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
# Pillow's own limit, above which it refuses an image as a decompression bomb.
MOST_PIXELS = 178_956_970


def as_rgb(image: Image.Image) -> Image.Image:
    """Converts to RGB. 16-bit grey keeps its upper 8 bits, as 16-bit colour does; Pillow would clip it at 255."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def resize_and_crop(image: Image.Image, spec: ImageSpec) -> NDArray[np.uint8]:
    """Resizes the short side and crops the centre: uint8 [height, width, 3] at the model's input size.

    The order and rounding are those of torchvision's Resize and CenterCrop on a Pillow image,
    which the published evaluation uses.

    Raises:
        ValueError: the image is so long and thin that the resized image would exceed MOST_PIXELS.
    """
    preprocess, (height, width) = spec.preprocess, spec.image_size
    resampling = RESAMPLING[preprocess.interpolation]
    image = as_rgb(image)
    if preprocess.short_side is None:
        return np.asarray(image.resize((width, height), resampling))
    scaled: tuple[int, ...] = (preprocess.short_side,) * 2
    if not preprocess.squash:
        short = min(image.size)
        scaled = tuple(preprocess.short_side if side == short else int(preprocess.short_side * side / short)
                       for side in image.size)
    # An image of 1 x 60000 pixels would become gigabytes.
    if scaled[0] * scaled[1] > MOST_PIXELS:
        raise ValueError(f"it is too long and thin: {image.width} x {image.height} pixels become {scaled[0]} x "
                         f"{scaled[1]}, more than {MOST_PIXELS}")
    image = image.resize((scaled[0], scaled[1]), resampling)
    left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    # Where the crop exceeds the resized image (wide non-square inputs), Pillow pads with black.
    return np.asarray(image.crop((left, top, left + width, top + height)))


def normalise(images: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float32]:
    """uint8 [B, height, width, 3] -> float32 [B, 3, height, width], scaled to 0..1, then normalised."""
    mean = np.asarray(preprocess.mean, np.float32)
    std = np.asarray(preprocess.std, np.float32)
    scaled = (images.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def scale_and_shift(preprocess: Preprocess) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and shift per channel so that x * scale + shift equals `normalise` of raw RGB x in 0..255."""
    scale = tuple(1 / (255 * std) for std in preprocess.std)
    shift = tuple(-mean / std for mean, std in zip(preprocess.mean, preprocess.std))
    return scale, shift
