"""Collects ranges: runs real images through the float32 graph and records the inputs of each product."""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts.facts import ArtifactFacts, library_versions
from ..artifacts.files import require_file
from ..data.images import ImageSet, Track, no_track
from ..data.open import open_calibration
from ..errors import DataError
from ..graph.read import Graph, graph_facts, weights_fingerprint
from ..runners.open import is_checkpoint
from .activations import BATCH, stream_activations
from .config import CalibrationConfig
from .observers import Histogram, threshold
from .policy import quantizable
from .ranges import ENOUGH_IMAGES, Ranges, TensorRange, tensor_key

# Fewer distinct images are refused.
LEAST_IMAGES = 4
# Neighbouring pixels of photos correlate at 0.8 and more, those of noise at 0 (0.15 once it is made smaller).
NOISE = 0.3


def calibrate(path: str | Path, config: CalibrationConfig, track: Track[Any] = no_track) -> Ranges:
    """Ranges of the float32 ONNX file `path` on the images of `config.data`, see `collect`; None is noise.

    Raises:
        DataError: it is not a float32 file of dyvit, there are too few distinct images, or they are noise without
            `config.allow_noise`.
    """
    graph = Graph(path)
    images = open_calibration(config.data, float32_facts(graph).model, config.images)
    return collect(graph, images, examine(images, config.allow_noise), config, track)


def float32_facts(graph: Graph) -> ArtifactFacts:
    """The facts of a float32 graph of dyvit; DataError if it is something else."""
    path = graph.path
    if is_checkpoint(path):
        raise DataError(f"{path} is a checkpoint; export it first: dyvit export {path} -o model.onnx.")
    if not graph.in_memory:
        require_file(path)
    facts = graph_facts(graph.structure, str(path))
    if facts is None or facts.precision != "float32":
        found = "was not written by dyvit" if facts is None else f"is already {facts.precision}"
        raise DataError(f"{path} {found}; name a float32 graph that dyvit export wrote.")
    return facts


def ranges_for(source: str | Path | Graph, images: ImageSet, hashes: Sequence[str], config: CalibrationConfig,
               track: Track[Any] = no_track) -> Ranges:
    """The ranges in the file `config.ranges`; if it is None, ranges collected on `images` (see `collect`).

    Raises:
        ArtifactError: the file is missing or damaged.
        DataError: `source` is not a float32 graph of dyvit, or the ranges belong to another graph.
    """
    graph = Graph.of(source)
    if config.ranges is None:
        return collect(graph, images, hashes, config, track)
    facts = float32_facts(graph)
    ranges = Ranges.load(config.ranges)
    fingerprint = weights_fingerprint(graph.structure, graph.folder)
    ranges.check_fits(fingerprint, facts.model.preprocess, facts.model.image_size)
    return ranges


def collect(source: str | Path | Graph, images: ImageSet, hashes: Sequence[str],
            config: CalibrationConfig = CalibrationConfig(), track: Track[Any] = no_track) -> Ranges:
    """Ranges of the inputs of every product that the policy quantizes.

    Images are streamed: one small batch and one histogram per tensor are in memory.

    Args:
        source: the float32 graph, or its file.
        hashes: what `examine` returned for these images.

    Raises:
        DataError: NaN at some layer.
    """
    graph = Graph.of(source)
    facts = graph_facts(graph.structure, str(graph.path))
    assert facts is not None
    products = quantizable(graph.structure, config.attention)
    watch = {tensor_key(p.node, i): tensor for p in products for i, tensor in zip(p.activations, p.tensors)}
    histograms = {tensor: Histogram() for tensor in watch.values()}
    for _, found in stream_activations(graph, images, list(histograms), track):
        for tensor, values in found.items():
            histograms[tensor].update(values)
    ranges = {tensor: TensorRange(h.minimum, h.maximum, threshold(h, config.method))
              for tensor, h in histograms.items()}
    return Ranges(config.method, weights_fingerprint(graph.structure, graph.folder), facts.model.name,
                  facts.model.image_size, facts.model.preprocess, images.name, tuple(hashes),
                  {key: ranges[tensor] for key, tensor in watch.items()},
                  library_versions("onnxruntime", "onnxruntime-gpu", "numpy"), tuple(images.skipped))


def examine(images: ImageSet, allow_noise: bool) -> tuple[str, ...]:
    """One hash per image, 16 hexadecimal digits of the sha256 of its pixels.

    Raises:
        DataError: the images cannot replace real ones: there are too few distinct ones, or they are noise.
    """
    hashes: list[str] = []
    correlations: list[float] = []
    for batch in images.batches(BATCH):
        hashes += [hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in batch.images]
        correlations += neighbour_correlation(batch.images).tolist()
    check_images(images.name, hashes, correlations, allow_noise)
    return tuple(hashes)


def check_images(name: str, hashes: Sequence[str], correlations: Sequence[float], allow_noise: bool) -> None:
    """Raises DataError if these images cannot replace real ones."""
    distinct = len(set(hashes))
    if distinct < LEAST_IMAGES:
        raise DataError(f"{name} has {distinct} distinct image{'s' * (distinct != 1)} among {len(hashes)}; calibration "
                        f"needs at least {LEAST_IMAGES}, better {ENOUGH_IMAGES} and more.")
    if np.median(correlations) < NOISE and not allow_noise:
        raise DataError(f"{name} is noise (neighbouring pixels have nothing to do with each other), whose ranges ruin "
                        "accuracy; calibrate on real images, or pass --allow-random-calib to try things out.")


def neighbour_correlation(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """float64 [B]: correlation of horizontally adjacent pixels of uint8 [B, height, width, 3]; 0 for a blank image."""
    grey = images.astype(np.float64).mean(axis=3)  # [B, height, width]
    left, right = (side.reshape(len(images), -1) for side in (grey[:, :, :-1], grey[:, :, 1:]))
    left, right = (side - side.mean(axis=1, keepdims=True) for side in (left, right))
    spread = np.sqrt((left ** 2).sum(axis=1) * (right ** 2).sum(axis=1))
    correlation: NDArray[np.float64] = (left * right).sum(axis=1) / np.where(spread > 0, spread, 1)
    return correlation
