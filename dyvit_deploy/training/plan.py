"""The configuration of a training run."""
from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from ..artifacts.facts import ArtifactFacts
from ..config import KeepRequest, device_option, image_size_option
from ..settings.fields import option
from .recipe import RECIPES, Recipe


@dataclass(frozen=True)
class TrainConfig:
    """The model, the data and the options of a training run.

    `backbone` is a dense checkpoint or "timm-pretrained"; None trains one first, under `out`/dense. One with other
    classes is trained on the data first. `recipe` names a base in RECIPES, `recipe_file` and `overrides` replace single
    values of it, in this order; the dense teacher takes all of them but `epochs` (it has `dense_epochs`), `lr` and
    `elastic`. `keep` ratio 1.0 trains a dense backbone alone. `command` is recorded in train.json.
    """

    model: str = option(MISSING, "A zoo name (dyvit models) or timm:NAME.")
    data: str = option(MISSING, "digits, wds/PATH, hfds/NAME, or a folder with train/ and val/, one subfolder per "
                                "class.")
    out: str | Path = option("run", "Folder for checkpoints and logs.", "-o --out")
    keep: KeepRequest = KeepRequest()
    backbone: str | Path | None = option(None, "Dense checkpoint to start from, which is the teacher too, or "
                                               "timm-pretrained; without it one is trained first.")
    recipe: str | None = option(None, "Hyper-parameters; default: small.", metavar=f"[{'|'.join(RECIPES)}]")
    recipe_file: str | Path | None = option(None, "Values of the recipe, as .toml or .yaml.")
    overrides: tuple[tuple[str, Any], ...] = ()
    dense_epochs: int | None = option(None, "Epochs of the dense teacher.")
    image_size: tuple[int, int] | None = image_size_option()
    resume: bool = option(False, "Resume from last.safetensors.")
    eval_only: bool = option(False, "Measure the model that training would start from.")
    device: str | None = device_option()
    workers: int | None = option(None, "Processes that load images; default: 2 per training process.")
    accumulate: int = option(1, "Parts of a batch, to save memory.")
    compile: bool = option(False, "Use torch.compile.")
    tensorboard: bool = option(False, "Also write curves for TensorBoard.")
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
