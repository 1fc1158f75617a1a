"""What a training run is asked for."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifacts.facts import ArtifactFacts
from ..config import KeepRequest
from .recipe import Recipe


@dataclass(frozen=True)
class TrainConfig:
    """What to train on what, and how.

    `backbone` is the dense checkpoint to start from, which also is the teacher, or "timm-pretrained"; None
    trains one first, under `out`/dense. One with other classes is trained on the data first. `recipe` names
    a base in RECIPES, `recipe_file` and `overrides` replace single values of it, in this order; the dense
    teacher takes all of them but `epochs` (it has `dense_epochs`), `lr` and `elastic`. `keep` ratio 1.0 trains
    a dense backbone alone. `eval_only` measures the model that training would start or go on with.

    `workers` processes load images (None: two for each that trains), `accumulate` parts make one step
    in less memory, `compile` uses torch.compile. `command` is what was typed to get here, for train.json.
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
class Plan:
    """One phase of it: the user's wishes, the recipe that follows, and the facts of the result."""

    config: TrainConfig
    recipe: Recipe
    facts: ArtifactFacts

    @property
    def phase(self) -> str:
        return "student" if self.facts.prune else "dense"
