"""The configuration of a training run."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifacts.facts import ArtifactFacts
from ..config import KeepRequest
from .recipe import Recipe


@dataclass(frozen=True)
class TrainConfig:
    """The model, the data and the options of a training run.

    `backbone` is the dense checkpoint to start from, which is also the teacher, or "timm-pretrained". With None, a
    backbone is trained first, in `out`/dense; a backbone with other classes is first trained on the data. `recipe`
    names a base in RECIPES; `recipe_file` and then `overrides` replace single values of it. The dense teacher uses
    all of them except `epochs` (it has `dense_epochs`), `lr`, `lr_batch` and `elastic`. A `keep` ratio of 1.0 trains
    only a dense backbone. `eval_only` validates the model that training would start from or resume, and trains
    nothing.

    `workers` processes load images (None: two per training process). `accumulate` divides each step into that many
    micro-batches, to save memory. `compile` uses torch.compile. `command` is the command line, for train.json.
    """

    model: str
    data: str
    out: str | Path
    keep: KeepRequest = KeepRequest()
    backbone: str | Path | None = None
    recipe: str | None = None
    recipe_file: str | Path | None = None
    overrides: tuple[tuple[str, Any], ...] = ()
    dense_epochs: int | None = None
    image_size: tuple[int, int] | None = None
    resume: bool = False
    eval_only: bool = False
    device: str | None = None
    workers: int | None = None
    accumulate: int = 1
    compile: bool = False
    tensorboard: bool = False
    command: str = ""


@dataclass(frozen=True)
class TrainPhase:
    """One phase of training, "dense" or "student": the config, its resolved recipe, and the facts of the result."""

    config: TrainConfig
    recipe: Recipe
    facts: ArtifactFacts

    @property
    def name(self) -> str:
        return "student" if self.facts.prune else "dense"
