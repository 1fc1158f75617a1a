"""The gate of an export: the artifact is compared with its checkpoint as PyTorch computes it, without any rewrite.

A comparison with the float32 graph instead would pass whatever the exporter itself did wrong.
"""
from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import EngineRunConfig, LoadConfig
from ..data.images import ImageSet
from ..data.open import open_images
from ..export.memory import collector_paused
from ..parity.compare import ParityReport, compare
from ..parity.config import CheckConfig
from ..runners.open import open_runner
from .report import Progress

if TYPE_CHECKING:
    from ..runners.pytorch import PyTorchRunner

# What `ArtifactFacts.gate` records.
PASSED, REJECTED, NOT_RUN = "passed", "rejected", "not run"
# Batch sizes at which a lowered artifact is compared, and a float32 one, which needs seconds only: what can go wrong in
# it shows on noise.
BATCHES, FLOAT32_BATCHES = (1, 8), (1, 2)
FLOAT32_IMAGES = 8


class Gate:
    """Compares exports of one checkpoint with it. `checkpoint` and `load` are those of `export_artifact`."""

    def __init__(self, checkpoint: str | os.PathLike[str], load: LoadConfig, progress: Progress) -> None:
        self._checkpoint, self._progress = checkpoint, progress
        self._load = dataclasses.replace(load, precision="float32", engine=EngineRunConfig())

    def reference(self) -> PyTorchRunner:
        """The checkpoint in float32 on the CPU; to be closed by the caller."""
        # Opening a checkpoint imports torch.
        with collector_paused():
            from ..runners.pytorch import PyTorchRunner

            return PyTorchRunner.open(self._checkpoint, self._load, device="cpu")

    def check(self, artifact: Path, name: str, images: ImageSet) -> ParityReport:
        """Compares a lowered `artifact`, called `name` in the report, on all `images`."""
        return self._compare(artifact, name, images, CheckConfig(len(images), BATCHES))

    def check_float32(self, artifact: Path, name: str) -> ParityReport:
        """Compares a float32 `artifact` on a few images of noise."""
        with open_runner(artifact, device="cpu") as candidate:
            images = open_images(None, candidate.image_spec(None), limit=FLOAT32_IMAGES)
        return self._compare(artifact, name, images, CheckConfig(FLOAT32_IMAGES, FLOAT32_BATCHES))

    def _compare(self, artifact: Path, name: str, images: ImageSet, config: CheckConfig) -> ParityReport:
        self._progress.say("comparing with the checkpoint")
        with self.reference() as reference, open_runner(artifact, device="cpu") as candidate:
            candidate.name = name
            return compare(reference, candidate, images, config, self._progress.track)
