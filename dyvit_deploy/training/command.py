"""Trains a dense model, or a dense teacher and then its pruned student."""
from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path

import torch

from ..artifacts.facts import ArtifactFacts
from ..artifacts.files import make_folder
from ..artifacts.locks import sole_use
from ..config import KeepRequest, ModelConfig, PruneConfig, default_stages
from ..data.labels import class_numbers, numbering, require_labels
from ..data.open import open_images
from ..errors import ConfigError, TrainingError
from ..evaluation.evaluate import evaluate
from ..machine.processes import claim_share, is_first
from ..model import build
from ..model.checkpoint import Backbone, load_backbone, load_model, read_checkpoint
from ..model.dynamicvit import DynamicViT
from ..runners.pytorch import PyTorchRunner, torch_device
from ..settings.notes import assume
from .loop import LAST, VAL_BATCH, Run
from .plan import TrainConfig, TrainPhase
from .recipe import Recipe, make_recipe, read_recipe
from .report import EventCallback, TrainReport
from .setup import device_names

DEFAULT_RATIO, DEFAULT_RECIPE = 0.7, "small"
# Overrides that do not apply to the dense teacher.
STUDENT_ONLY = ("epochs", "lr", "lr_batch", "elastic")


def train(config: TrainConfig, watch: EventCallback = lambda _: None) -> TrainReport:
    """Trains, and writes `best`, `best-ema` and `last.safetensors` to `config.out` after every epoch.

    Processes that torchrun starts share the work. SIGTERM and Ctrl-C save a checkpoint and raise KeyboardInterrupt.

    Raises:
        TrainingError: a loss became NaN, a process or worker died, or there is nothing to resume.
        ConfigError, DataError, CheckpointError: the options, the data or the backbone cannot be used; or another
            training writes there.
    """
    config = _merge_recipe_file(config)
    # A recipe refuses 0 epochs, which are allowed if nothing is trained.
    if config.eval_only:
        config = dataclasses.replace(config, overrides=tuple(v for v in config.overrides
                                                             if v[0] != "epochs" or str(v[1]) != "0"))
    model, classes, prune = _resolve(config)
    kind = "student" if prune else "dense" if config.backbone is None else "tune"
    recipe = make_recipe(config.recipe or DEFAULT_RECIPE, model.name, kind, dict(config.overrides))
    _check_options(config, recipe, model, prune)
    facts = ArtifactFacts(model, prune, class_names=classes)
    # A new head has random weights.
    torch.manual_seed(recipe.seed)
    if config.eval_only:
        return _validate_only(config, recipe, facts)
    out = Path(config.out)
    # The first of several processes writes for all.
    with sole_use(out / LAST) if is_first() else contextlib.nullcontext():
        return _train(config, recipe, facts, watch)


def _train(config: TrainConfig, recipe: Recipe, facts: ArtifactFacts, watch: EventCallback) -> TrainReport:
    """Trains the teacher, if there is one to train, and then the model."""
    out, model, prune = Path(config.out), facts.model, facts.prune
    _check_folder(config, out, prune)
    # Fails for an unsupported student before its teacher trains for an hour.
    if prune:
        DynamicViT(model, prune).forward_masked(torch.zeros(1, 3, *model.image_size))
    backbone = _open_backbone(config.backbone, facts) if config.backbone is not None else None
    if prune and backbone and not backbone.new_head and config.dense_epochs is not None:
        raise ConfigError(f"{config.backbone} is the teacher without further training; leave out --dense-epochs.")
    if prune and (backbone is None or backbone.new_head):
        backbone = _open_backbone(_train_teacher(config, out / "dense", watch), facts)
        if backbone.new_head:
            raise TrainingError(f"The teacher in {out / 'dense'} was trained on other classes; choose another folder.")
    run = Run(TrainPhase(config, recipe, facts), backbone, watch)
    make_folder(out)
    return run.run()


def _open_backbone(source: str | Path, facts: ArtifactFacts) -> Backbone:
    """Loads dense weights; their head counts as new if it was trained on other classes."""
    backbone = load_backbone(source, facts.model)
    names = backbone.facts.class_names
    same = names is None or names == facts.class_names
    if names is None and not backbone.new_head:
        assume(numbering(str(source), "the training split", facts.class_names or ()))
    return backbone if same else backbone._replace(new_head=True)


def _resolve(config: TrainConfig) -> tuple[ModelConfig, tuple[str, ...], PruneConfig | None]:
    """The model, its class names, and the schedule (None if no token is dropped)."""
    model = build.resolve(config.model)
    if config.image_size:
        model = model.with_image_size(config.image_size)
    names = require_labels(open_images(config.data, model, "train"))
    class_numbers(open_images(config.data, model, "val"), names, owner="training split")
    model = dataclasses.replace(model, classes=len(names))
    default = PruneConfig.from_ratio(DEFAULT_RATIO, config.keep.stages or default_stages(model.depth))
    prune = config.keep.resolve(model.depth, default)
    return model, names, None if prune is None or prune.is_dense(model.patches) else prune


def _validate_only(config: TrainConfig, recipe: Recipe, facts: ArtifactFacts) -> TrainReport:
    """Validates the model that training would start from, or resume."""
    claim_share()
    last = Path(config.out) / LAST
    if config.resume:
        model, facts = load_model(last)
    elif config.backbone is None:
        raise ConfigError("There is nothing to measure yet; pass --backbone FILE, or --resume for the run in "
                          f"{config.out}.")
    else:
        backbone = _open_backbone(config.backbone, facts)
        if backbone.new_head:
            raise ConfigError(f"{config.backbone} does not know the classes of {config.data}; train it on them first.")
        model = DynamicViT(facts.model, facts.prune)
        model.backbone.load_state_dict(backbone.model.backbone.state_dict())
    device = torch_device(config.device)
    runner = PyTorchRunner(model.eval().to(device), facts)
    report = evaluate(runner, open_images(config.data, facts.model, "val"), VAL_BATCH)
    measured = str(last if config.resume else config.backbone)
    if facts.prune and not config.resume:
        measured += f", {facts.prune.selector} untrained, keeping {model.keep_counts}"
    if not report:
        raise TrainingError(report.failures[0])
    return TrainReport(None, None, str(last) if config.resume else None, report.top1, None, (), recipe, report.skipped,
                       device_names(device), measured)


def _merge_recipe_file(config: TrainConfig) -> TrainConfig:
    """The config with the values of its recipe file as overrides; overrides given directly take precedence."""
    if config.recipe_file is None:
        return config
    values, direct = read_recipe(config.recipe_file), dict(config.overrides)
    base = values.pop("recipe", None)
    # A learning rate given directly is not scaled.
    if "lr" in direct:
        values.pop("lr_batch", None)
    return dataclasses.replace(config, recipe_file=None, recipe=config.recipe or base,
                               overrides=tuple((values | direct).items()))


def _check_options(config: TrainConfig, recipe: Recipe, model: ModelConfig, prune: PruneConfig | None) -> None:
    """Raises ConfigError for options without effect, and for an elastic range that the schedule does not allow."""
    if prune is None:
        if recipe.elastic or config.keep.selector or config.keep.fuse or config.dense_epochs is not None:
            raise ConfigError("A dense model drops no tokens and has no teacher; leave out --elastic, --selector, "
                              "--fuse and --dense-epochs, or give a keep ratio below 1.")
        return
    if recipe.elastic is None:
        return
    (low, high), first = recipe.elastic, prune.ratios(model.patches)[0]
    if prune.selector == "structural" or prune != PruneConfig.from_ratio(first, prune.stages, prune.selector):
        raise ConfigError("Elastic training needs one keep ratio for all stages; give --keep-ratio or nothing.")
    if not low <= first <= high:
        raise ConfigError(f"The keep ratio {first:g}, the default of an export, is outside the elastic "
                          f"range {low:g}:{high:g}; choose one within it.")
    # Raises if the lowest ratio leaves no token.
    PruneConfig.from_ratio(low, prune.stages).counts(model.patches)


def _check_folder(config: TrainConfig, out: Path, prune: PruneConfig | None) -> None:
    if (out / LAST).exists() and not config.resume:
        raise TrainingError(f"{out} already contains a run; pass --resume to continue it, or choose another folder.")
    if config.resume and not any((folder / LAST).exists() for folder in (out, out / "dense")):
        raise TrainingError(f"There is nothing to resume in {out}; check the folder or leave out --resume.")
    if prune and config.backbone is None and (out / LAST).exists() and not (out / "dense").exists():
        raise TrainingError(f"The run in {out} started from a backbone; pass the same --backbone.")


def _train_teacher(config: TrainConfig, folder: Path, watch: EventCallback) -> Path:
    """Trains or resumes the dense backbone in `folder`, unless it is finished; returns its best checkpoint."""
    last = folder / LAST
    resume = config.resume and last.exists()
    facts = read_checkpoint(last).facts if resume else None
    training = (facts and facts.training) or {}
    if training.get("epoch", 0) >= training.get("recipe", {}).get("epochs", math.inf):
        return folder / "best.safetensors"
    overrides = {k: v for k, v in config.overrides if k not in STUDENT_ONLY}
    if config.dense_epochs is not None:
        overrides["epochs"] = config.dense_epochs
    train(dataclasses.replace(config, keep=KeepRequest(ratio=1.0), out=folder, resume=resume, dense_epochs=None,
                              overrides=tuple(overrides.items())), watch)
    return folder / "best.safetensors"

