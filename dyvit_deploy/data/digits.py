"""The demo data set: generated scenes with one handwritten digit in clutter.

scikit-learn ships 1,797 real 8x8 handwritten digits. Each scene shows one of them, scaled,
tilted and coloured, at a random position on a noisy background with fragments of other digits.
Most patches therefore carry no information, and the bounding box of the digit is known. No digit
is in two splits.
"""
from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config import ImageSpec
from ..errors import DataError, did_you_mean
from ..optional import require
from .images import Batch

# Height and width of a scene in pixels.
SIDE = 64
# Range of a digit's side in pixels; the upper end is exclusive.
DIGIT_SIDE = (22, 33)
# Largest rotation in degrees, in either direction.
TILT = 12.0
FRAGMENTS, FRAGMENT_SIDE = 6, 8
# Share of the digits that each split takes, from and to.
SPLITS = {"train": (0.0, 0.75), "val": (0.75, 0.8), "test": (0.8, 1.0)}
COUNTS = {"train": 30_000, "val": 1_000, "test": 2_000}
# A pixel belongs to the digit if its opacity exceeds this.
INK = 0.15


@functools.cache
def glyphs(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The digits of a split: uint8 [count, 8, 8], where 0 is paper and 255 is ink, and int64 labels."""
    data = require("sklearn.datasets", extra="demo").load_digits()
    order = np.random.default_rng(1797).permutation(len(data.target))
    low, high = (round(edge * len(order)) for edge in SPLITS[split])
    chosen = order[low:high]
    return (data.images[chosen] * (255 / 16)).astype(np.uint8), data.target[chosen].astype(np.int64)


class DigitScenes:
    """`limit` scenes of a split. Scene i is the same in every run; `sample` draws a new variant in every epoch."""

    class_names: tuple[str, ...] | None = tuple("0123456789")
    # A mirrored 2 is not a 2.
    mirror = False
    # The name already contains the split.
    split: str | None = None

    def __init__(self, spec: ImageSpec, split: str = "test", limit: int | None = None) -> None:
        if split not in SPLITS:
            raise DataError(f"Unknown split {split!r}.{did_you_mean(split, SPLITS)}")
        self.name = f"digits:{split}"
        self.skipped: list[str] = []
        self._split, self._scenes, self._size = split, range(limit or COUNTS[split]), spec.image_size

    def __len__(self) -> int:
        return len(self._scenes)

    @staticmethod
    def has_split(source: str, split: str) -> bool:
        return split in SPLITS

    def part(self, rank: int, world: int) -> DigitScenes:
        """Every `world`-th scene, starting at number `rank`."""
        part = copy.copy(self)
        part._scenes = self._scenes[rank::world]
        return part

    def batches(self, size: int) -> Iterator[Batch]:
        for start in range(0, len(self), size):
            indices = self._scenes[start:start + size]
            scenes = [draw_scene(self._split, i) for i in indices]
            images = np.stack([np.asarray(self._resized(scene[0])) for scene in scenes])
            boxes: NDArray[np.float32] = np.asarray([scene[2] for scene in scenes], np.float32)
            boxes *= np.asarray([side / SIDE for side in self._size] * 2, np.float32)
            labels = np.asarray([scene[1] for scene in scenes], np.int64)
            yield Batch(images, labels, boxes, [f"{self.name} {i}" for i in indices])

    def sample(self, index: int, epoch: int) -> tuple[Image.Image, int]:
        """A scene resized to the model's input, and its label; see `Samples`."""
        scene, label, _ = draw_scene(self._split, self._scenes[index], epoch + 1)
        return self._resized(scene), label

    def name_of(self, index: int) -> str:
        return f"{self.name} {self._scenes[index]}"

    def _resized(self, scene: NDArray[np.uint8]) -> Image.Image:
        """The scene at the model's input size; unchanged if it already has that size."""
        return Image.fromarray(scene).resize(self._size[::-1], Image.Resampling.BICUBIC)


def draw_scene(split: str, index: int, variant: int = 0) -> tuple[NDArray[np.uint8], int, tuple[int, int, int, int]]:
    """Scene `index` of a split: uint8 [64, 64, 3], its label and the digit's box (top, left, bottom, right)."""
    shapes, labels = glyphs(split)
    rng = np.random.default_rng([variant, list(SPLITS).index(split), index])
    canvas, paper = _background(rng)
    for _ in range(FRAGMENTS):
        opacity = _stamp(shapes[rng.integers(len(shapes))], int(rng.integers(*DIGIT_SIDE)), 0.0)
        row, column = rng.integers(0, opacity.shape[0] - FRAGMENT_SIDE + 1, 2)
        opacity = opacity[row:row + FRAGMENT_SIDE, column:column + FRAGMENT_SIDE]
        _blend(canvas, opacity, _ink(rng, paper), *rng.integers(0, SIDE - FRAGMENT_SIDE + 1, 2))
    digit = int(rng.integers(len(shapes)))
    opacity = _stamp(shapes[digit], int(rng.integers(*DIGIT_SIDE)), float(rng.uniform(-TILT, TILT)))
    top, left = (int(edge) for edge in rng.integers(0, SIDE - opacity.shape[0] + 1, 2))
    _blend(canvas, opacity, _ink(rng, paper), top, left)
    canvas += 8 * rng.standard_normal(canvas.shape, np.float32)
    rows, columns = (np.flatnonzero((opacity > INK).any(axis)) for axis in (1, 0))
    box = (top + int(rows[0]), left + int(columns[0]), top + int(rows[-1]) + 1, left + int(columns[-1]) + 1)
    return canvas.clip(0, 255).astype(np.uint8), int(labels[digit]), box


def _background(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A cloudy background, float32 [64, 64, 3], and its mean colour [3]."""
    colour = rng.uniform(0, 110, 3).astype(np.float32)
    clouds = (colour + rng.normal(0, 18, (8, 8, 3))).clip(0, 255).astype(np.uint8)
    soft = Image.fromarray(clouds).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(soft, np.float32).copy(), colour


def _ink(rng: np.random.Generator, paper: NDArray[np.float32]) -> NDArray[np.float32]:
    """A colour [3] that contrasts with the paper: of 8 random colours the first that is brighter by at least 80 of
    255, else the brightest."""
    colours = rng.uniform(60, 255, (8, 3)).astype(np.float32)
    excess = colours.mean(axis=1) - paper.mean()
    colour: NDArray[np.float32] = colours[excess.clip(max=80).argmax()]
    return colour


def _stamp(shape: NDArray[np.uint8], side: int, degrees: float) -> NDArray[np.float32]:
    """The opacity of a resized and rotated digit, float32 [side, side] in 0..1."""
    image = Image.fromarray(shape).resize((side, side), Image.Resampling.BICUBIC)
    if degrees:
        image = image.rotate(degrees, Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32) / np.float32(255)


def _blend(canvas: NDArray[np.float32], opacity: NDArray[np.float32], colour: NDArray[np.float32],
           top: int, left: int) -> None:
    """Paints `colour` onto `canvas` in place."""
    height, width = opacity.shape
    window = canvas[top:top + height, left:left + width]
    window += (colour - window) * opacity[..., None]
