"""Runs a model on images: which patches it keeps, and which class it predicts."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..artifacts.facts import ArtifactFacts
from ..data.label_files import read_labels
from ..data.reading import DecodedImage
from ..errors import ConfigError
from ..evaluation.metrics import softmax
from ..parity.kept_tokens import as_mask
from ..runners.base import Outputs, Runner, run_in_batches


class ImageView(NamedTuple):
    """One image as the model gets it, and the outputs of the model.

    pixels: uint8 [height, width, 3], RGB, resized and cropped.
    kept: bool [S, rows, columns], True for patches that are left after a stage.
    scores: float32 [S, rows, columns], -inf for patches dropped before; None if the backend outputs no scores.
    prediction: the name of the likeliest class, with its probability `confidence`, 0..1.
    number: that class; another one may have the same name.
    """

    name: str
    pixels: NDArray[np.uint8]
    kept: NDArray[np.bool_]
    scores: NDArray[np.float32] | None
    prediction: str
    confidence: float
    number: int

    @property
    def counts(self) -> tuple[int, ...]:
        """Kept patches per stage."""
        return tuple(self.kept.sum(axis=(1, 2)).tolist())


def pruned_facts(runner: Runner) -> ArtifactFacts:
    """The facts of a pruned artifact that outputs which patches it keeps.

    Raises:
        ConfigError: the artifact does not output them, or keeps all patches.
    """
    name, facts = runner.name, runner.facts
    if facts is None:
        raise ConfigError(f"{name} was not written by dyvit, so nothing is known of its patches; export it from its "
                          "checkpoint.")
    if facts.prune is None or facts.dense:
        raise ConfigError(f"{name} keeps every patch, so there is nothing to see; export it with --keep-ratio, or open "
                          "a checkpoint with it.")
    if not facts.prune.keeps_patches:
        raise ConfigError(f"{name} pools its patches, so none of them is kept or dropped; take another --selector.")
    if not _run_blank(runner, facts).kept:
        raise ConfigError(f"{name} does not output which patches it keeps; export it again: dyvit export CHECKPOINT "
                          "--with-tokens -o FILE")
    return facts


def with_labels(facts: ArtifactFacts, labels: str | None) -> ArtifactFacts:
    """`facts` with the class names of the file `labels`, if one is given; raises its errors, see `read_labels`."""
    if labels is None:
        return facts
    return dataclasses.replace(facts, class_names=read_labels(labels, facts.model.classes))


def require_scores(runner: Runner, facts: ArtifactFacts) -> None:
    """Raises ConfigError unless the backend outputs the score of each patch."""
    if not _run_blank(runner, facts).scores:
        raise ConfigError(f"{runner.name} outputs which patches it keeps, but not their scores; only checkpoints do.")


def _run_blank(runner: Runner, facts: ArtifactFacts) -> Outputs:
    """The outputs for a black image."""
    return run_in_batches(runner, np.zeros((1, *facts.model.image_size, 3), np.uint8), 1)


def view_images(runner: Runner, facts: ArtifactFacts, images: Sequence[DecodedImage]) -> list[ImageView]:
    """One view per image; see `pruned_facts` for `facts`."""
    if not images:
        return []
    out = run_in_batches(runner, np.stack([image.pixels for image in images]), len(images))
    shape = (len(images), -1, *facts.model.grid)                                                # B S rows columns
    kept = np.stack([as_mask(stage, facts.model.patches) for stage in out.kept], axis=1).reshape(shape)
    scores = np.stack(out.scores, axis=1).reshape(shape) if out.scores else None
    probabilities = np.nan_to_num(softmax(out.logits))                                          # [B, classes]
    names = facts.class_names or [f"class {number}" for number in range(probabilities.shape[1])]
    best = probabilities.argmax(axis=1)
    return [ImageView(image.name, image.pixels, kept[i], None if scores is None else scores[i], names[best[i]],
                      float(probabilities[i, best[i]]), int(best[i])) for i, image in enumerate(images)]
