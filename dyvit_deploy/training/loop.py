"""Trains a dense backbone, or a pruned student beside its dense teacher: what is trained, and in which order."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..artifacts import ArtifactFacts, make_folder
from ..config import KeepRequest, ModelConfig, PruneConfig, default_stages
from ..data.labels import class_numbers, require_labels
from ..data.open import open_images
from ..distributed import barrier
from ..errors import ConfigError, TrainingError
from ..model import vit
from ..model.checkpoint import load_backbone, load_model, read_checkpoint
from ..model.dynamicvit import DynamicViT
from ..runners.evaluate import evaluate
from ..runners.pytorch import PyTorchRunner, torch_device
from .recipe import Recipe, make_recipe, read_recipe
from .report import TrainReport, Watch
from .run import VAL_BATCH, Plan, Run

DEFAULT_RATIO, DEFAULT_RECIPE = 0.7, "small"
TEACHER_KEEPS = ("epochs", "lr", "lr_batch", "elastic")    # overrides that are meant for the student alone


@dataclass(frozen=True)
class TrainConfig:
    """What to train on what, and how.

    `backbone` is the dense checkpoint to start from, which also is the teacher, or "timm-pretrained"; None
    trains one first, under `out`/dense. One with other classes is trained on the data first. `recipe` names
    a base in RECIPES, `recipe_file` and `overrides` replace single values of it, in this order; the dense
    teacher takes all of them but `epochs` (it has `dense_epochs`), `lr` and `elastic`. `keep` ratio 1.0 trains
    a dense backbone alone. `eval_only` measures the model that training would start or go on with.

    `workers` processes load images (None: two for each that trains), `accumulate` parts make one step
    in less memory, `compile` uses torch.compile.
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


def train(config: TrainConfig, watch: Watch = lambda _: None) -> TrainReport:
    """Trains, writing `best`, `best-ema` and `last.safetensors` under `config.out` after every epoch.

    Started by torchrun, all its processes share the work. SIGTERM and Ctrl-C save and raise KeyboardInterrupt.

    Raises:
        TrainingError: a loss became NaN, a process or worker died, or there is nothing to resume.
        ConfigError, DataError, CheckpointError: the request cannot be met.
    """
    config = _with_file(config)
    if config.eval_only:                                                   # how long it would train is no matter
        config = dataclasses.replace(config, overrides=tuple(v for v in config.overrides if v[0] != "epochs"))
    model, classes, prune = _resolve(config)
    recipe = make_recipe(config.recipe or DEFAULT_RECIPE, model.name, prune is None, dict(config.overrides))
    if prune and recipe.elastic:
        _check_elastic(recipe.elastic, prune, model)
    facts = ArtifactFacts(model, prune, class_names=classes)
    if config.eval_only:
        return _measure(config, recipe, facts)
    out = make_folder(config.out)
    _check_folder(config, out)
    if prune:                                                              # before an hour goes into its teacher
        DynamicViT(model, prune).forward_masked(torch.zeros(1, 3, *model.image_size))
    backbone = load_backbone(config.backbone, model) if config.backbone is not None else None
    if prune and (backbone is None or backbone.new_head):
        backbone = load_backbone(_train_teacher(config, out / "dense", watch), model)
    return Run(Plan(config, recipe, facts), backbone, watch).run()


def _resolve(config: TrainConfig) -> tuple[ModelConfig, tuple[str, ...], PruneConfig | None]:
    """Model, class names and schedule; None where no token is dropped."""
    model = vit.resolve(config.model)
    if config.image_size:
        model = model.with_image_size(config.image_size)
    names = require_labels(open_images(config.data, model, "train"))
    class_numbers(open_images(config.data, model, "val"), names, owner="training split")
    model = dataclasses.replace(model, classes=len(names))
    default = PruneConfig.from_ratio(DEFAULT_RATIO, config.keep.stages or default_stages(model.depth))
    prune = config.keep.resolve(model.depth, default)
    return model, names, None if prune is None or prune.is_dense(model.patches) else prune


def _measure(config: TrainConfig, recipe: Recipe, facts: ArtifactFacts) -> TrainReport:
    """Validation of the model that training would start with, or go on with."""
    last = Path(config.out) / "last.safetensors"
    if config.resume:
        model, facts = load_model(last)
    elif config.backbone is None:
        raise ConfigError("There is nothing to measure yet; pass --backbone FILE, or --resume for the run in "
                          f"{config.out}.")
    else:
        model = DynamicViT(facts.model, facts.prune)
        model.backbone.load_state_dict(load_backbone(config.backbone, facts.model).model.backbone.state_dict())
    runner = PyTorchRunner(model.eval().to(torch_device(config.device)), facts)
    found = evaluate(runner, open_images(config.data, facts.model, "val"), VAL_BATCH)
    return TrainReport(str(last if config.resume else config.backbone), None, str(last), found.top1, None, (), recipe,
                       found.skipped)


def _with_file(config: TrainConfig) -> TrainConfig:
    """The recipe file as overrides, under those that are given anyway."""
    if config.recipe_file is None:
        return config
    values = read_recipe(config.recipe_file)
    base = values.pop("recipe", None)
    return dataclasses.replace(config, recipe_file=None, recipe=config.recipe or base,
                               overrides=tuple((values | dict(config.overrides)).items()))


def _check_elastic(span: tuple[float, float], prune: PruneConfig, model: ModelConfig) -> None:
    first = prune.ratios(model.patches)[0]
    if prune != PruneConfig.from_ratio(first, prune.stages, prune.selector):
        raise ConfigError("Elastic training needs one keep ratio for all stages; give --keep-ratio or nothing.")
    if not span[0] <= first <= span[1]:
        raise ConfigError(f"The keep ratio {first:g}, which an export takes by default, lies outside the elastic range "
                          f"{span[0]:g}:{span[1]:g}; choose one within it.")


def _check_folder(config: TrainConfig, out: Path) -> None:
    if (out / "last.safetensors").exists() and not config.resume:
        raise TrainingError(f"{out} holds a run already; pass --resume to go on with it, or choose another folder.")
    if config.resume and not any((folder / "last.safetensors").exists() for folder in (out, out / "dense")):
        raise TrainingError(f"There is nothing to resume in {out}; check the folder or leave out --resume.")
    barrier()                                                              # before the first process writes there


def _train_teacher(config: TrainConfig, folder: Path, watch: Watch) -> Path:
    """Trains the dense backbone in `folder`, or goes on with it, or finds it finished."""
    last = folder / "last.safetensors"
    started = config.resume and last.exists()
    facts = read_checkpoint(last).facts if started else None
    if facts and facts.training and facts.training["epoch"] >= facts.training["recipe"]["epochs"]:
        return folder / "best.safetensors"
    overrides = {k: v for k, v in config.overrides if k not in TEACHER_KEEPS}
    if config.dense_epochs is not None:
        overrides["epochs"] = config.dense_epochs
    train(dataclasses.replace(config, keep=KeepRequest(ratio=1.0), out=folder, resume=started,
                              overrides=tuple(overrides.items())), watch)
    return folder / "best.safetensors"

