"""Trains a dense backbone, or a pruned student beside its dense teacher, on one device."""
from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from rich.text import Text
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..artifacts import ArtifactFacts, library_versions, make_folder, write_json
from ..config import KeepRequest, LoadConfig, PruneConfig, default_stages
from ..data.images import Batch
from ..data.open import open_images
from ..data.preprocess import normalise
from ..errors import CheckpointError, ConfigError, TrainingError
from ..model import vit
from ..model.checkpoint import load_model, published_name, read_checkpoint, read_resume, save_checkpoint
from ..model.dynamicvit import DynamicViT
from ..model.lvvit import LVViT
from ..runners.evaluate import evaluate
from ..runners.pytorch import PyTorchRunner, torch_device
from .losses import LossParts, LossWeights, kl_loss, ratio_loss, token_kl, token_mse, total_loss
from .recipe import DENSE, STUDENT, Recipe

log = logging.getLogger(__name__)
DEFAULT_RATIO = 0.7
RECIPE_OPTIONS = ("epochs", "batch", "lr", "images", "seed", "bf16")   # what the command line offers of a Recipe


@dataclass(frozen=True)
class TrainConfig:
    """What to train on what.

    `backbone` is the checkpoint of the dense teacher; None trains one first, under `out`/dense.
    `overrides` are Recipe fields that the user set; the dense teacher takes all of them but `lr`, and
    `dense_epochs` for its epochs. `keep` ratio 1.0 trains a dense backbone alone.
    """

    model: str
    data: str
    out: str | Path
    keep: KeepRequest = KeepRequest()
    backbone: str | Path | None = None
    overrides: tuple[tuple[str, Any], ...] = ()
    dense_epochs: int | None = None
    resume: bool = False
    device: str | None = None


@dataclass(frozen=True)
class Step:
    """One optimizer step, for progress bars. `parts` are unweighted; `kept` is the fraction per stage."""

    phase: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    parts: dict[str, float]
    kept: tuple[float, ...]


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch; `top1` is measured at the inference path, tokens removed."""

    phase: str
    epoch: int
    loss: float
    parts: dict[str, float]
    top1: float
    seconds: float


@dataclass(frozen=True)
class TrainReport:
    """Where the checkpoints lie, and how good the best one was on the validation split.

    `skipped` names images that could not be read.
    """

    best: str
    last: str
    top1: float
    epochs: tuple[EpochReport, ...]
    recipe: Recipe
    skipped: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def table(self) -> Table:
        title = f"best {self.best} (validation top-1 {self.top1:.2%}), last {self.last}"
        table = Table(title=Text(title), title_justify="left")
        for column in ("phase", "epoch", "top-1", "loss", *LossParts._fields, "seconds"):
            table.add_column(column, justify="right")
        for e in self.epochs:
            table.add_row(e.phase, str(e.epoch), f"{e.top1:.2%}", f"{e.loss:.3f}",
                          *(f"{e.parts[name]:.4f}" for name in LossParts._fields), f"{e.seconds:.0f}")
        return table


Watch = Callable[[Step | EpochReport], None]


def train(config: TrainConfig, watch: Watch = lambda _: None) -> TrainReport:
    """Trains, writing `best.safetensors` and `last.safetensors` under `config.out` after every epoch.

    Without `config.backbone`, a student's dense teacher is trained first, under `dense/`.

    Raises:
        TrainingError: a loss became NaN, or there is nothing to resume.
        ConfigError, DataError, CheckpointError: the request cannot be met.
    """
    model_config = vit.resolve(config.model)
    train_set = open_images(config.data, model_config, "train")
    if train_set.class_names is None:
        raise ConfigError(f"{config.data} has no labels; put the images of each class in a subfolder of its own.")
    model_config = dataclasses.replace(model_config, classes=len(train_set.class_names))
    default = PruneConfig.from_ratio(DEFAULT_RATIO, config.keep.stages or default_stages(model_config.depth))
    prune = config.keep.resolve(model_config.depth, default)
    if prune and prune.is_dense(model_config.patches):
        prune = None
    base = STUDENT if prune else DENSE
    try:
        recipe = dataclasses.replace(base, **dict(config.overrides))
    except TypeError as error:
        raise ConfigError(f"The recipe has no such value: {error}.") from error
    out = make_folder(config.out)
    if (out / "last.safetensors").exists() and not config.resume:
        raise TrainingError(f"{out} holds a run already; pass --resume to go on with it, or choose another folder.")
    if config.resume and not any((folder / "last.safetensors").exists() for folder in (out, out / "dense")):
        raise TrainingError(f"There is nothing to resume in {out}; check the folder or leave out --resume.")
    if prune:                                                              # before an hour goes into its teacher
        DynamicViT(model_config, prune).forward_masked(torch.zeros(1, 3, *model_config.image_size))
    backbone = config.backbone
    if prune and backbone is None:
        backbone = _train_teacher(config, out / "dense", watch)
    facts = ArtifactFacts(model_config, prune, class_names=train_set.class_names)
    return _Run(config, recipe, facts, backbone, out, watch).run()


def _train_teacher(config: TrainConfig, folder: Path, watch: Watch) -> Path:
    """Trains the dense backbone in `folder`, or goes on with it, or finds it finished."""
    last = folder / "last.safetensors"
    started = config.resume and last.exists()
    facts = read_checkpoint(last).facts if started else None
    if facts and facts.training and facts.training["epoch"] >= facts.training["recipe"]["epochs"]:
        return folder / "best.safetensors"
    overrides = {k: v for k, v in config.overrides if k not in ("epochs", "lr")}
    if config.dense_epochs is not None:
        overrides["epochs"] = config.dense_epochs
    train(dataclasses.replace(config, keep=KeepRequest(ratio=1.0), out=folder, resume=started,
                              overrides=tuple(overrides.items())), watch)
    return folder / "best.safetensors"


class _Run:
    """One training run: the models, the optimizer and where they stand."""

    def __init__(self, config: TrainConfig, recipe: Recipe, facts: ArtifactFacts, backbone: str | Path | None,
                 out: Path, watch: Watch) -> None:
        self.recipe, self.facts, self.out, self.watch = recipe, facts, out, watch
        self.phase = "student" if facts.prune else "dense"
        self._last = out / "last.safetensors"
        self.device = torch_device(config.device)
        torch.manual_seed(recipe.seed)
        self.model = DynamicViT(facts.model, facts.prune)
        self.teacher: DynamicViT | None = None
        parent = None
        if backbone is not None:
            self.teacher, dense_facts = load_model(backbone, LoadConfig(
                model=facts.model.name, keep=KeepRequest(ratio=1.0), image_size=facts.model.image_size))
            self._adopt(self.teacher)
            parent = dense_facts.parent
        self.training = {"data": config.data, "recipe": recipe.to_dict(), "parent": parent,
                         "versions": library_versions("torch", "timm", "numpy")}
        self.train_set = open_images(config.data, facts.model, "train", recipe.images)
        self.val_set = open_images(config.data, facts.model, "val")
        self.steps = -(-len(self.train_set) // recipe.batch)
        self.model.to(self.device)
        if self.teacher:
            self.teacher.to(self.device)
        self._make_optimizer()
        self.first_epoch, self.best = 0, -1.0
        self.reports: list[EpochReport] = []
        # A run interrupted in its teacher has no student to resume yet.
        if config.resume and (config.backbone is not None or backbone is None or self._last.exists()):
            self._resume()

    def _adopt(self, teacher: DynamicViT) -> None:
        """Starts the student's backbone from the teacher's."""
        if teacher.config.classes != self.model.config.classes:
            raise CheckpointError(f"The backbone knows {teacher.config.classes} classes, the data have "
                                  f"{self.model.config.classes}; train a dense model on them first (--keep-ratio 1.0).")
        self.model.backbone.load_state_dict(teacher.backbone.state_dict())

    def _make_optimizer(self) -> None:
        recipe = self.recipe
        groups = []
        for module, scale in ((self.model.backbone, recipe.backbone_lr if self.facts.prune else 1.0),
                              (self.model.score_predictor, 1.0)):
            for group in param_groups_weight_decay(module, recipe.weight_decay):
                if group["params"]:
                    groups.append(group | {"lr": recipe.lr * scale})
        self.optimizer = torch.optim.AdamW(groups)
        total = recipe.epochs * self.steps
        warmup = min(round(recipe.warmup_epochs * self.steps), total // 2)
        self.scheduler = CosineLRScheduler(self.optimizer, t_initial=max(total - warmup, 2), lr_min=recipe.lr_min,
                                           warmup_t=warmup, warmup_lr_init=recipe.lr_min, warmup_prefix=True,
                                           t_in_epochs=False)

    def run(self) -> TrainReport:
        for epoch in range(self.first_epoch, self.recipe.epochs):
            # Seeding by epoch makes a resumed run draw what the uninterrupted one would have drawn.
            torch.manual_seed(self._draw(epoch))
            started = time.perf_counter()
            loss, parts = self._epoch(epoch)
            runner = PyTorchRunner(self.model, self.facts)
            top1 = evaluate(runner, self.val_set, batch=100).top1
            report = EpochReport(self.phase, epoch + 1, loss, parts, top1, time.perf_counter() - started)
            self.reports.append(report)
            self._save(report)
            self.watch(report)
        return self._report()

    def _draw(self, epoch: int) -> int:
        """A number for the random choices of one epoch of this run."""
        return self.recipe.seed * 100_003 + epoch

    def _report(self) -> TrainReport:
        return TrainReport(str(self.out / "best.safetensors"), str(self._last), self.best,
                           tuple(self.reports), self.recipe, (*self.train_set.skipped, *self.val_set.skipped))

    def _epoch(self, epoch: int) -> tuple[float, dict[str, float]]:
        self.model.train()
        frozen = bool(self.facts.prune) and epoch < self.recipe.freeze_epochs
        self.model.backbone.requires_grad_(not frozen).train(not frozen)   # batch norms stand still too
        sums: dict[str, float] = {}
        loss_sum = 0.0
        for step, batch in enumerate(self.train_set.batches(self.recipe.batch, epoch=self._draw(epoch))):
            self.scheduler.step_update(epoch * self.steps + step)
            loss, parts, kept = self._step(batch)
            named = {name: part.item() for name, part in parts._asdict().items()}
            self._check_finite(named, epoch, step)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
            self.optimizer.step()
            loss_sum += loss.item()
            sums = {name: sums.get(name, 0.0) + value for name, value in named.items()}
            self.watch(Step(self.phase, epoch + 1, self.recipe.epochs, step + 1, self.steps, loss.item(), named, kept))
        return loss_sum / (step + 1), {name: value / (step + 1) for name, value in sums.items()}

    def _step(self, batch: Batch) -> tuple[Tensor, LossParts, tuple[float, ...]]:
        images = torch.from_numpy(normalise(batch.images, self.facts.model.preprocess)).to(self.device)
        labels = torch.as_tensor(batch.labels, device=self.device)
        with self._attention(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            if self.facts.prune is None:
                logits = self.model(images).float()
                zero = logits.new_zeros(())
                cls = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
                return cls, LossParts(cls, zero, zero, zero), ()
            parts, kept = student_losses(self.model, self.teacher, images, labels, self.recipe.label_smoothing)
        weights = LossWeights(1.0, self.recipe.ratio_weight, self.recipe.kl_weight, self.recipe.token_weight)
        return total_loss(parts, weights), parts, kept

    def _attention(self) -> contextlib.AbstractContextManager[None]:
        # PyTorch's fused attention takes 45 % of a training step on a CPU, in its backward; plain products do not.
        return sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else contextlib.nullcontext()

    def _check_finite(self, parts: dict[str, float], epoch: int, step: int) -> None:
        for name, value in parts.items():
            if not math.isfinite(value):
                raise TrainingError(f"The {name} loss became {value} at epoch {epoch + 1}, step {step + 1}; start with "
                                    f"a lower --lr in another folder (finished epochs in {self.out} are intact).")

    def _save(self, report: EpochReport) -> None:
        better = report.top1 > self.best
        self.best = max(self.best, report.top1)
        training = self.training | {"epoch": report.epoch, "val_top1": report.top1, "best_val_top1": self.best}
        facts = dataclasses.replace(self.facts, training=training)
        if better:
            save_checkpoint(self.out / "best.safetensors", self.model, facts)
        save_checkpoint(self._last, self.model, facts, resume=self._optimizer_tensors())
        write_json(self.out / "train.json", self._report().to_json())

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{published_name(name)}/{key}"] = torch.as_tensor(value)
        return tensors

    def _resume(self) -> None:
        path = self._last
        if not path.exists():
            raise TrainingError(f"There is nothing to resume in {self.out}; check the folder or leave out --resume.")
        restored, facts = load_model(path)
        if facts.model != self.facts.model or facts.prune != self.facts.prune or not facts.training:
            raise TrainingError(f"{path} belongs to a run with another model or keep ratio; "
                                "choose another folder or the same options.")
        if facts.training["recipe"] != self.recipe.to_dict():
            changed = [k for k, v in self.recipe.to_dict().items() if facts.training["recipe"].get(k) != v]
            raise TrainingError(f"{path} was trained with other values for {', '.join(changed)}; resume with the same.")
        self.model.load_state_dict(restored.state_dict())
        tensors = read_resume(path)
        for name, parameter in self.model.named_parameters():
            prefix = published_name(name) + "/"
            state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            if state:
                self.optimizer.state[parameter] = {k: v if k == "step" else v.to(self.device) for k, v in state.items()}
        self.first_epoch, self.best = facts.training["epoch"], facts.training["best_val_top1"]
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):    # the history is a convenience
            history = json.loads((self.out / "train.json").read_text())["epochs"]
            self.reports = [EpochReport(**epoch) for epoch in history if epoch["epoch"] <= self.first_epoch]
        log.info("resuming %s after epoch %d", path, self.first_epoch)


def student_losses(model: DynamicViT, teacher: DynamicViT | None, images: Tensor, labels: Tensor,
                   label_smoothing: float = 0.0, samples: tuple[Tensor, ...] | None = None,
                   ) -> tuple[LossParts, tuple[float, ...]]:
    """The four losses of one batch, and the fraction kept after each stage.

    Args:
        model: a student with predictors, in training mode.
        teacher: the dense backbone; None leaves both distillation parts at zero.
        images: float [B, 3, height, width], normalised.
        labels: int64 [B], or soft targets float [B, classes].
        samples: per stage float [B, N]; None draws them.
    """
    assert model.prune is not None
    out = model.forward_masked(images, samples)
    logits, decision = out.logits.float(), out.decisions[-1]
    cls = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    ratio = ratio_loss(out.decisions, model.prune.ratios(model.config.patches))
    kl = token = logits.new_zeros(())
    if teacher is not None:
        with torch.no_grad():
            teacher_all = teacher.backbone.forward_features(images)
            teacher_logits = teacher.backbone.forward_head(teacher_all).float()
        kl = kl_loss(logits, teacher_logits)
        theirs, ours = teacher_all[:, teacher.prefix:], out.tokens
        if isinstance(model.backbone, LVViT):
            token = token_kl(model.backbone.aux_head(ours).float(), teacher.backbone.aux_head(theirs).float(), decision)
        else:
            token = token_mse(ours.float(), theirs.float(), decision)
    return LossParts(cls, ratio, kl, token), tuple(d.detach().mean().item() for d in out.decisions)
