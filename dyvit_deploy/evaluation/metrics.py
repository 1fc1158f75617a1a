"""Metrics of predictions and kept patches: calibration error, keep counts, box coverage."""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Rows and columns of a pooled grid, at most.
SHOWN = 7


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities, float64 [B, classes], of logits float [B, classes]; NaN in rows with a NaN or an infinity."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def top_probability(logits: NDArray[Any]) -> NDArray[np.float64]:
    """The largest softmax probability of each row of logits [B, classes]: float64 [B], 0 in rows with a NaN."""
    confidence: NDArray[np.float64] = np.nan_to_num(softmax(logits).max(axis=1))
    return confidence


def calibration_error(confidence: NDArray[Any], correct: NDArray[Any], bins: int = 15) -> float:
    """Expected calibration error: the mean difference between confidence and accuracy, 0 for a calibrated model.

    Images are grouped by confidence into `bins` of equal width. The absolute difference between the mean confidence
    and the accuracy of each bin is averaged, weighted by the number of images in the bin (Guo et al. 2017, On
    Calibration of Modern Neural Networks, equation 3). The result does not depend on the order of the images.

    Args:
        confidence: float [n], the probability of the predicted class, 0..1.
        correct: bool or float [n], 1 for a correct prediction.
        bins: the number of bins; bin m contains (m - 1) / bins < confidence <= m / bins.

    Returns:
        0..1; NaN without images.
    """
    if not len(confidence):
        return float("nan")
    order = np.lexsort((correct, confidence))
    confidence, correct = confidence[order].astype(np.float64), correct[order].astype(np.float64)
    number = (np.ceil(confidence * bins).astype(np.int64) - 1).clip(0, bins - 1)
    gaps = np.bincount(number, correct, bins) - np.bincount(number, confidence, bins)
    return float(np.abs(gaps).sum() / len(confidence))


def kept_counts(kept: NDArray[np.int64], patches: int) -> NDArray[np.int64]:
    """How many images keep each patch, int64 [N], from `kept` int64 [B, K], patch numbers in row order."""
    return np.bincount(kept.ravel(), minlength=patches)


def pooled(grid: NDArray[Any]) -> NDArray[np.float64]:
    """Float [rows, cols] averaged over equal areas to at most SHOWN rows and columns, as in the paper's figure 6."""
    def shares(side: int) -> NDArray[np.float64]:
        cells = min(side, SHOWN)
        edges = np.arange(cells + 1) * (side / cells)
        return _overlap(edges[:-1], edges[1:], side, side) * (cells / side)  # [cells, side], rows sum to 1

    averages: NDArray[np.float64] = shares(grid.shape[0]) @ grid @ shares(grid.shape[1]).T
    return averages


def box_coverage(kept: NDArray[np.int64], boxes: NDArray[np.float32], grid: tuple[int, int],
                 image_size: tuple[int, int]) -> NDArray[np.float64]:
    """Fraction of each box's area that kept patches cover.

    Args:
        kept: int64 [B, K], patch numbers in row order.
        boxes: float32 [B, 4], top, left, bottom, right in pixels.
        grid: rows and columns of the patch grid.
        image_size: height and width in pixels.

    Returns:
        float64 [B], 0..1.
    """
    rows = _overlap(boxes[:, 0], boxes[:, 2], grid[0], image_size[0])
    columns = _overlap(boxes[:, 1], boxes[:, 3], grid[1], image_size[1])
    area = (rows[:, :, None] * columns[:, None, :]).reshape(len(boxes), -1)  # [B, N]
    covered: NDArray[np.float64] = np.take_along_axis(area, kept, axis=1).sum(1) / area.sum(1)
    return covered


def _overlap(low: NDArray[Any], high: NDArray[Any], count: int, side: int) -> NDArray[Any]:
    """Length of the overlap of each interval [low, high] with each of `count` equal cells of `side`: [B, count]."""
    edges = np.arange(count + 1) * (side / count)
    inside = np.minimum(high[:, None], edges[None, 1:]) - np.maximum(low[:, None], edges[None, :-1])
    pixels: NDArray[Any] = inside.clip(min=0)
    return pixels
