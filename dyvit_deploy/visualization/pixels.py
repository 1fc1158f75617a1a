"""Pixels of a figure: what is dropped is faded, outlined or coloured by its score. Every function is pure.

Letters as everywhere: H, W pixels; a patch grid is [rows, columns] and divides the image evenly.
"""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

WHITE, BLACK = 255, 0
# Share of white in a dropped patch, as in the published figures.
FADE = 0.8
# Brightness of a dropped patch beside an outline.
DIM = 0.45
# Okabe and Ito's colours, for any colour vision.
ORANGE, BLUE = (230, 159, 0), (0, 114, 178)
# The short side over the width of an outline.
LINE_SHARE = 96


def enlarged(pixels: Pixels, least: int) -> Pixels:
    """uint8 [H, W, 3] repeated to a short side of at least `least` pixels: patches keep their exact edges."""
    times = -(-least // min(pixels.shape[:2]))
    return pixels.repeat(times, 0).repeat(times, 1)


def fitted(pixels: Pixels, short: int, long: int) -> Pixels:
    """uint8 [H, W, 3] averaged over whole squares until the short side is below twice `short`, the long one at most
    `long`; as it is where it already is."""
    height, width = pixels.shape[:2]
    times = max(1, min(height, width) // short, -(-max(height, width) // long))
    return pixels if times == 1 else np.asarray(Image.fromarray(pixels).reduce(times))


def spread_over(kept: Mask, pixels: Pixels) -> Mask:
    """bool [rows, columns] -> bool [H, W, 1], that of each pixel's patch."""
    height, width = pixels.shape[:2]
    rows, columns = kept.shape
    return kept.repeat(height // rows, 0).repeat(width // columns, 1)[..., None]


def faded(pixels: Pixels, kept: Mask) -> Pixels:
    """uint8 [H, W, 3] whose dropped patches are mixed with white; `kept` is bool [rows, columns]."""
    mixed = (1 - FADE) * pixels + FADE * WHITE
    return np.where(spread_over(kept, pixels), pixels, mixed.round()).astype(np.uint8)


def outlined(pixels: Pixels, kept: Mask) -> Pixels:
    """uint8 [H, W, 3] with a line around what is kept, and the rest darker."""
    dimmed = np.where(spread_over(kept, pixels), pixels, (DIM * pixels).round()).astype(np.uint8)
    line = max(1, min(pixels.shape[:2]) // LINE_SHARE)
    for width, colour in ((2 * line, BLACK), (line, ORANGE)):              # one of the two stands out anywhere
        dimmed[_border(kept, pixels, width)] = colour
    return dimmed


def coloured(pixels: Pixels, kept: Mask, colours: NDArray[np.float64]) -> Pixels:
    """uint8 [H, W, 3], each kept patch in grey under its colour; dropped ones are faded.

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
    """uint8 [H, W, 3]: kept by both as it is, by neither faded, by `first` only in orange, by `second` only in blue
    with stripes, so that the two are told apart without colour, too."""
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
    """bool [H, W]: the `width` pixels at the edge of the kept area, on its inner side."""
    inside = np.pad(spread_over(kept, pixels)[..., 0], 1)
    core = inside
    for _ in range(width):
        core = core & np.roll(core, 1, 0) & np.roll(core, -1, 0) & np.roll(core, 1, 1) & np.roll(core, -1, 1)
    border: Mask = (inside & ~core)[1:-1, 1:-1]
    return border
