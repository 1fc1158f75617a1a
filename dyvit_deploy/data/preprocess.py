"""Preprocessing of images, as in the evaluation of the checkpoint.

This file is copied into Triton repositories, so at run time it imports nothing from this package.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from ..config import ImageSpec
    from ..settings.preprocessing import Preprocess

RESAMPLING = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR,
              "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
# Pillow's own limit, above which it refuses an image as a decompression bomb.
MOST_PIXELS = 178_956_970
# Tags of TIFF, and their values.
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
WHITE_IS_ZERO, SIGNED = 0, 2
# The EXIF tag, and how to make an image upright by its value; 1 is upright.
ORIENTATION = 274
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}
UNKNOWN_RANGE = "it has {}, whose range is unknown; save it with 8 bits per channel"


def as_rgb(image: Image.Image) -> Image.Image:
    """Converts to RGB with 8 bits per channel; docs/images.md has the rule for each kind of image.

    Pillow would clip integers of more than 8 bits and floats at 255, which gives white and black images.

    Raises:
        ValueError: the range of its values is unknown.
    """
    # Only TIFF files have tags.
    tags: Any = getattr(image, "tag_v2", {})
    if SIGNED in np.ravel(tags.get(SAMPLE_FORMAT, 1)):
        raise ValueError(UNKNOWN_RANGE.format("signed numbers as pixels"))
    if image.mode.startswith("I") or image.mode == "F":
        grey = _scaled_floats(image) if image.mode == "F" else _upper_bits(image, tags)
        # Pillow inverts files of 8 bits itself.
        exif = image.info.get("exif")
        image = Image.fromarray(255 - grey if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else grey)
        # For `orientation`.
        image.info["exif"] = exif
    elif image.mode == "P" and "transparency" in image.info:
        # Pillow warns about a direct conversion, whose result is the same.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _upper_bits(image: Image.Image, tags: Any) -> NDArray[np.uint8]:
    """The upper 8 bits of grey with 16 bits, or with TIFF's 12: uint8 [height, width]."""
    # Before Pillow 11, 16-bit PNG files had mode I; in PNM files, Pillow scales any range to 16 bits.
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise ValueError(UNKNOWN_RANGE.format("32-bit pixels"))
    values = np.asarray(image)
    bits = 12 if 12 in np.ravel(tags.get(BITS, 16)) else 16
    if bits == 16 and 0 < values.max() < 1 << 12:
        raise ValueError(UNKNOWN_RANGE.format(f"16-bit pixels of {values.max()} at most, 12 bits or fewer"))
    grey: NDArray[np.uint8] = (values >> (bits - 8)).astype(np.uint8)
    return grey


def _scaled_floats(image: Image.Image) -> NDArray[np.uint8]:
    """0..1 as 0..255: uint8 [height, width]."""
    values = np.asarray(image)
    # NaN fails this, too.
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(UNKNOWN_RANGE.format("floating-point pixels outside 0 to 1"))
    grey: NDArray[np.uint8] = np.rint(values * 255).astype(np.uint8)
    return grey


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of a JPEG, PNG or WebP file, 1 to 8; 1 for one that has none, or a damaged one.

    Other places are not read (XMP), so that every runtime finds the same. Pillow itself applies the tag of TIFF files.
    """
    if not (content := image.info.get("exif")):
        return 1
    exif = Image.Exif()
    try:
        exif.load(content)
        value = exif.get(ORIENTATION)
    # Depending on the damage, struct.error, SyntaxError and others.
    except Exception:
        return 1
    return value if isinstance(value, int) and value in TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says."""
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def resize_and_crop(image: Image.Image, spec: ImageSpec) -> NDArray[np.uint8]:
    """Resizes and crops the centre: uint8 [height, width, 3] at the model's input size.

    The order and rounding are those of torchvision's Resize and CenterCrop on a Pillow image, which the published
    evaluation uses, and for inputs that are not square those of timm. With `spec.orient`, it is first turned as its
    EXIF orientation says.

    Raises:
        ValueError: the image is so long and thin that the resized image would exceed MOST_PIXELS.
    """
    preprocess, (height, width) = spec.preprocess, spec.image_size
    resampling = RESAMPLING[preprocess.interpolation]
    image = as_rgb(image)
    if spec.orient:
        image = upright(image)
    if preprocess.short_side is None:
        return np.asarray(image.resize((width, height), resampling))
    scaled = _scaled(image.size, preprocess, width > height)
    # An image of 1 x 60000 pixels would become gigabytes.
    if scaled[0] * scaled[1] > MOST_PIXELS:
        raise ValueError(f"it is too long and thin: {image.width} x {image.height} pixels become {scaled[0]} x "
                         f"{scaled[1]}, more than {MOST_PIXELS}")
    image = image.resize((scaled[0], scaled[1]), resampling)
    left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    # Where the crop exceeds the resized image (a short side below the input's), Pillow pads with black.
    return np.asarray(image.crop((left, top, left + width, top + height)))


def _scaled(size: tuple[int, int], preprocess: Preprocess, wide: bool) -> tuple[int, int]:
    """Width and height to which an image of (width, height) `size` is resized; `wide`: the input's width is its longer
    side."""
    short, long = preprocess.short_side, preprocess.long_side or preprocess.short_side
    assert short is not None and long is not None
    asked = (long, short) if wide else (short, long)
    if preprocess.squash:
        return asked
    if long == short:
        shorter = min(size)
        return (short if size[0] == shorter else int(short * size[0] / shorter),
                short if size[1] == shorter else int(short * size[1] / shorter))
    ratio = min(size[0] / asked[0], size[1] / asked[1])
    return round(size[0] / ratio), round(size[1] / ratio)


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
