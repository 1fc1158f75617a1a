"""Marks kept and dropped patches in the pixels of an image. Every function is pure.

Shapes: H, W are pixels; a patch grid is [rows, columns] and divides the image evenly.
"""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

WHITE, BLACK = 255, 0
# The share of white in a dropped patch, as in the published figures.
FADE = 0.8
# The brightness of a dropped patch in an outlined image.
DIM = 0.45
# Okabe and Ito's colours, which people with any colour vision can distinguish.
ORANGE, BLUE = (230, 159, 0), (0, 114, 178)
# The width of an outline is the short side of the image over this number.
LINE_SHARE = 96


def enlarged(pixels: Pixels, least: int) -> Pixels:
    """Repeats the pixels of uint8 [H, W, 3] to a short side of at least `least`; patches keep their exact edges."""
    times = -(-least // min(pixels.shape[:2]))
    return pixels.repeat(times, 0).repeat(times, 1)


def fitted(pixels: Pixels, short: int, long: int) -> Pixels:
    """Averages uint8 [H, W, 3] over squares such that the short side is below twice `short` and the long side at most
    `long`; an image that already fits is returned unchanged."""
    height, width = pixels.shape[:2]
    times = max(1, min(height, width) // short, -(-max(height, width) // long))
    return pixels if times == 1 else np.asarray(Image.fromarray(pixels).reduce(times))


def spread_over(kept: Mask, pixels: Pixels) -> Mask:
    """bool [rows, columns] -> bool [H, W, 1], where each pixel has the value of its patch."""
    height, width = pixels.shape[:2]
    rows, columns = kept.shape
    return kept.repeat(height // rows, 0).repeat(width // columns, 1)[..., None]


def faded(pixels: Pixels, kept: Mask) -> Pixels:
    """uint8 [H, W, 3] whose dropped patches are mixed with white; `kept` is bool [rows, columns]."""
    mixed = (1 - FADE) * pixels + FADE * WHITE
    return np.where(spread_over(kept, pixels), pixels, mixed.round()).astype(np.uint8)


def outlined(pixels: Pixels, kept: Mask) -> Pixels:
    """uint8 [H, W, 3] with a line around the kept patches, and the others darker."""
    dimmed = np.where(spread_over(kept, pixels), pixels, (DIM * pixels).round()).astype(np.uint8)
    line = max(1, min(pixels.shape[:2]) // LINE_SHARE)
    # On any background, one of the two lines is visible.
    for width, colour in ((2 * line, BLACK), (line, ORANGE)):
        dimmed[_border(kept, pixels, width)] = colour
    return dimmed


def coloured(pixels: Pixels, kept: Mask, colours: NDArray[np.float64]) -> Pixels:
    """uint8 [H, W, 3] with each kept patch in grey, tinted with its colour; dropped ones are faded.

    Args:
        colours: float [rows, columns, 3], RGB, 0..1.
    """
    grey = pixels.mean(axis=2, keepdims=True)                                                   # [H, W, 1]
    height, width = pixels.shape[:2]
    rows, columns = kept.shape
    tint = WHITE * colours.repeat(height // rows, 0).repeat(width // columns, 1)                # [H, W, 3]
    tinted = (0.35 * grey + 0.65 * tint).round().astype(np.uint8)
    return np.where(spread_over(kept, pixels), tinted, faded(pixels, kept))


def differing(pixels: Pixels, first: Mask, second: Mask) -> Pixels:
    """uint8 [H, W, 3]: patches that both keep are unchanged, patches that both drop are faded, those that only `first`
    keeps are orange, and those that only `second` keeps are blue with stripes, for readers without colour."""
    height, width = pixels.shape[:2]
    diagonals = np.arange(height)[:, None] + np.arange(width)                                   # [H, W]
    stripes = (diagonals // max(2, height // 64) % 3 == 0)[..., None]
    result = faded(pixels, first | second)
    for only, colour, full in ((first & ~second, ORANGE, True), (second & ~first, BLUE, stripes)):
        tinted = (0.45 * pixels + 0.55 * np.array(colour)).round()
        marked = np.where(full, np.array(colour), tinted)
        result = np.where(spread_over(only, pixels), marked, result).astype(np.uint8)
    return result


def _border(kept: Mask, pixels: Pixels, width: int) -> Mask:
    """bool [H, W]: the outermost `width` pixels of the kept area."""
    inside = np.pad(spread_over(kept, pixels)[..., 0], 1)
    core = inside
    for _ in range(width):
        core = core & np.roll(core, 1, 0) & np.roll(core, -1, 0) & np.roll(core, 1, 1) & np.roll(core, -1, 1)
    border: Mask = (inside & ~core)[1:-1, 1:-1]
    return border
