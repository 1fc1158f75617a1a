"""One training run: epochs of steps, validation on the inference path, resumable checkpoints."""
from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..artifacts.facts import library_versions
from ..artifacts.reports import save_report
from ..data.open import open_images
from ..errors import BackendError, ConfigError, TrainingError
from ..evaluation.evaluate import evaluate_all
from ..machine.processes import broadcast_tensors, gather_over_ranks, is_first, rank, world_size
from ..model import vit
from ..model.checkpoint import Backbone, load_model, read_resume, save_checkpoint
from ..model.dynamicvit import DynamicViT
from ..runners.pytorch import PyTorchRunner
from .data import MicroBatch, Share, TrainLoader, make_mixup, seed_everything, to_device, worker_deaths
from .logs import Logs
from .losses import LossParts, LossWeights, total_loss
from .plan import TrainPhase
from .report import EpochReport, EventCallback, Started, Step, TrainReport
from .setup import FABRIC_DISTRIBUTIONS, device_names, make_fabric, make_optimizer, make_scheduler
from .state import StopRequest, restore, resume_tensors
from .step import Draws, TrainingStep, draw

VAL_BATCH = 100
# From which a run resumes.
LAST = "last.safetensors"
# Data workers per process.
WORKERS = 2
Sums = dict[str, float]
# What a checkpoint must record of its training so that it can be resumed.
RESUMED = {"recipe", "parent", "epoch", "best_val_top1"}


class Run:
    """One training run: its models, its optimizer and its progress."""

    def __init__(self, phase: TrainPhase, backbone: Backbone | None, watch: EventCallback) -> None:
        config, self.recipe, self.facts = phase.config, phase.recipe, phase.facts
        self.config, self.phase, self.watch, self.out = config, phase.name, watch, Path(config.out)
        self._last = self.out / LAST
        self.fabric = make_fabric(config.device, self.recipe)
        self.devices = device_names(self.fabric.device)
        self.share = Share(self.recipe.batch, rank(), world_size(), config.accumulate)
        train_set: Any = open_images(config.data, self.facts.model, "train")
        self.val_set = open_images(config.data, self.facts.model, "val")
        workers = WORKERS if config.workers is None else config.workers
        self.loader = TrainLoader(train_set, self.facts.model, self.recipe, self.share, workers,
                                  pinned=self.fabric.device.type == "cuda")
        self.mixup = make_mixup(self.recipe, self.facts.model.classes)
        if self.mixup and self.share.size % 2:
            raise ConfigError(f"Mixup pairs images, and {self.share.size} is odd; change --batch or --accumulate.")
        torch.manual_seed(self.recipe.seed)
        self.model = DynamicViT(self.facts.model, self.facts.prune)
        # A student starts with the weights of its teacher.
        if backbone:
            self.model.backbone.load_state_dict(backbone.model.backbone.state_dict())
        needs_teacher = self.facts.prune and (self.recipe.kl_weight or self.recipe.distill_weight)
        self.teacher = backbone.model if backbone and needs_teacher else None
        if self.teacher:
            self.teacher.requires_grad_(False).eval().to(self.fabric.device)
        vit.set_drop_path(self.model.backbone, self.recipe.drop_path)
        self.model.to(self.fabric.device)
        self._set_up(config.compile)
        # Finished epochs, and finished steps of the current epoch.
        self.epoch = self.step = 0
        # Sums of the losses over the current epoch.
        self.sums: Sums = {}
        self.images_per_sec = self.seconds = 0.0
        self.best, self.best_ema = -1.0, -1.0
        self.reports: list[EpochReport] = []
        self.skipped: list[str] = []
        self.training: dict[str, Any] = {
            "data": config.data, "recipe": self.recipe.to_dict(), "parent": backbone.facts.parent if backbone else None,
            "versions": library_versions("torch", "timm", *FABRIC_DISTRIBUTIONS, "numpy")}
        self._other_data: str | None = None
        self.resumed = config.resume and self._last.exists()
        if self.resumed:
            self._resume()

    def _set_up(self, compiled: bool) -> None:
        """Creates the optimizer, the learning-rate schedule, the moving average and the distributed module."""
        recipe = self.recipe
        self.optimizer = make_optimizer(self.model, recipe)
        self.scheduler = make_scheduler(self.optimizer, recipe, self.loader.steps)
        self.ema = None if recipe.ema is None else ModelEmaV3(self.model, recipe.ema)
        module: Any = TrainingStep(self.model, self.teacher, recipe.label_smoothing)
        self.module, self.shared_optimizer = self.fabric.setup(torch.compile(module) if compiled else module,
                                                               self.optimizer)
        self.weights = LossWeights(1.0, recipe.ratio_weight, recipe.kl_weight, recipe.distill_weight)

    def run(self) -> TrainReport:
        """Trains all remaining epochs."""
        logs = Logs(self.out, self.recipe, self.config.tensorboard)
        if self.epoch < self.recipe.epochs:
            self.watch(Started(self.phase, self.recipe, self.loader.steps, world_size(), self.epoch, self.step,
                               self.resumed, self._other_data))
        stop = StopRequest()
        with stop.listening(), contextlib.closing(logs), worker_deaths(), self._translated_errors():
            while self.epoch < self.recipe.epochs:
                stopped = self._train(stop, logs)
                self._check_weights()
                # Before validation, which may take long or fail.
                self._save()
                if stopped or self._finish(stop, logs):
                    raise KeyboardInterrupt
        return self._report()

    def _train(self, stop: StopRequest, logs: Logs) -> bool:
        """Trains the rest of an epoch; True if any process was requested to stop."""
        self.model.train()
        # The backbone is frozen only if the selector has parameters to train.
        frozen = self.epoch < self.recipe.freeze_epochs and any(True for _ in self.model.score_predictor.parameters())
        # Evaluation mode also freezes the statistics of batch norms.
        self.model.backbone.requires_grad_(not frozen).train(not frozen)
        started, first = time.perf_counter(), self.step
        for micro_batches in self.loader.steps_of(self.epoch, self.step):
            update = self.epoch * self.loader.steps + self.step
            self.scheduler.step_update(update)
            values = self._optimize(micro_batches, stop)
            if self.ema:
                self.ema.update(self.model, step=update + 1)
            self.step += 1
            self.seconds = time.perf_counter() - started
            self.images_per_sec = (self.step - first) * self.recipe.batch / self.seconds
            self.sums = {name: self.sums.get(name, 0.0) + value for name, value in values.items()}
            event = self._event(values)
            logs.step(event, update + 1, self._lr)
            self.watch(event)
            if values["stop"]:
                return True
        return False

    def _optimize(self, micro_batches: list[MicroBatch], stop: StopRequest) -> Sums:
        """Runs one optimizer step and returns its losses, averaged over all processes."""
        total, count = torch.zeros(0), len(micro_batches)
        self.optimizer.zero_grad(set_to_none=True)
        for number, micro_batch in enumerate(micro_batches):
            self.skipped += micro_batch.broken
            with self.fabric.no_backward_sync(self.module, enabled=number + 1 < count):
                losses, kept = self._losses(micro_batch)
                loss = total_loss(LossParts(*losses), self.weights)
                self.fabric.backward(loss / count)
            # `new_full` fills on the device; `new_tensor` would copy a number to it and wait.
            stop_requested = kept.new_full((1,), float(bool(stop)))
            values = torch.cat([loss.detach()[None], losses.detach(), kept, stop_requested])
            total = values if number == 0 else total + values
        total = self.fabric.all_reduce(total / count, reduce_op="mean")
        norm = self.fabric.clip_gradients(self.module, self.shared_optimizer,
                                          max_norm=self.recipe.clip_grad or math.inf, error_if_nonfinite=False)
        names = ("loss", *LossParts._fields, *(f"kept_{s}" for s in range(len(total) - 6)), "stop")
        values = dict(zip(names, total.tolist()))
        # The gradient scaler of fp16 skips steps whose gradient is not finite.
        gradient = 0.0 if norm is None or self.recipe.precision == "fp16" else norm.item()
        self._check_finite({name: values[name] for name in LossParts._fields} | {"gradient": gradient})
        self.shared_optimizer.step()
        # Every step that overflows halves the scale.
        if self._scaler is not None and self._scaler.get_scale() < 1:
            raise TrainingError("The gradients overflow in fp16 in many steps in a row; start in another folder with "
                                f"--precision bf16 or fp32{self._intact_note}.")
        return values

    def _losses(self, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        device, recipe = self.fabric.device, self.recipe
        seed_everything(recipe.seed, self.epoch, self.step, micro_batch.first)
        images, labels = to_device(micro_batch.images, device), to_device(micro_batch.labels, device)
        if self.mixup:
            images, labels = self.mixup(images, labels)
        draws = Draws()
        if self.facts.prune:
            rows = slice(micro_batch.first, micro_batch.first + len(images))
            noise, keep = draw(recipe, self.facts.prune, self.facts.model.patches, (self.epoch, self.step), rows)
            draws = Draws(noise and tuple(to_device(stage, device) for stage in noise),
                          None if keep is None else to_device(keep, device))
        with self._attention():
            losses, kept = self.module(images, labels, draws.noise, draws.keep)
        return losses, kept

    def _attention(self) -> contextlib.AbstractContextManager[None]:
        # On a CPU the backward of PyTorch's fused attention takes 45 % of a training step; plain products are faster.
        plain = self.fabric.device.type == "cpu"
        return sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext()

    @contextlib.contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Translates PyTorch's errors that a user can fix into our own."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise TrainingError("The GPU's memory is full; add --accumulate 2 (or more), or lower --batch.") from error
        except RuntimeError as error:
            if "allocate memory" in str(error):
                raise TrainingError("The memory is full; add --accumulate 2 (or more), or lower --batch.") from error
            if world_size() == 1 or not any(w in str(error) for w in ("onnection", "peer", "NCCL", "gloo", "imed out")):
                raise
            raise BackendError("Another process of this run failed or was killed; see its own error above, if there is "
                               "one.") from error

    def _check_finite(self, values: Sums) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                value_name = name if name == "gradient" else f"{name} loss"
                raise TrainingError(f"The {value_name} became {value} at epoch {self.epoch + 1}, step {self.step + 1}; "
                                    f"start with a lower --lr in another folder{self._intact_note}.")

    def _check_weights(self) -> None:
        """Raises TrainingError if the logits are not finite, before the weights replace an earlier checkpoint."""
        images = torch.zeros(1, 3, *self.facts.model.image_size, device=self.fabric.device)
        with torch.inference_mode():
            logits = self.model.eval()(images)
        if not logits.isfinite().all():
            raise TrainingError(f"The weights give {logits.flatten()[0].item()} after epoch {self.epoch + 1}, step "
                                f"{self.step}; start with a lower --lr in another folder{self._intact_note}.")

    @property
    def _intact_note(self) -> str:
        return f" (finished epochs in {self.out} are intact)" if self.epoch else ""

    @property
    def _lr(self) -> float:
        """The learning rate of the predictors, or of a dense backbone."""
        return float(self.optimizer.param_groups[-1]["lr"])

    def _event(self, values: Sums) -> Step:
        kept = tuple(value for name, value in values.items() if name.startswith("kept_"))
        return Step(self.phase, self.epoch + 1, self.recipe.epochs, self.step, self.loader.steps, values["loss"],
                    {name: values[name] for name in LossParts._fields}, kept, self.images_per_sec)

    def _validate(self) -> tuple[float, float | None]:
        """Top-1 of the weights, and of their moving average if there is one."""
        models = [self.model, *([self.ema.module] if self.ema else [])]
        # Each process has its own statistics of batch norms, from other images.
        broadcast_tensors(buffer for model in models for buffer in model.buffers())
        names = ("The model", "Its moving average")
        reports = evaluate_all([PyTorchRunner(model, self.facts, name) for model, name in zip(models, names)],
                               self.val_set, VAL_BATCH)
        for report in reports:
            if not report:
                raise TrainingError(f"{report.failures[0]} Start with a lower --lr in another folder"
                                    f"{self._intact_note}.")
        return reports[0].top1, reports[1].top1 if self.ema else None

    def _finish(self, stop: StopRequest, logs: Logs) -> bool:
        """Validates, saves and reports an epoch; True if any process was requested to stop meanwhile."""
        event = self._event({name: value / self.loader.steps for name, value in self.sums.items()})
        top1, ema_top1 = self._validate()
        report = EpochReport(self.phase, self.epoch + 1, event.loss, event.parts, event.kept, top1, ema_top1, self._lr,
                             self.images_per_sec, self.seconds)
        better, better_ema = top1 > self.best, (ema_top1 or -1.0) > self.best_ema
        self.best, self.best_ema = max(self.best, top1), max(self.best_ema, ema_top1 or -1.0)
        self.epoch, self.step, self.sums = self.epoch + 1, 0, {}
        self.reports.append(report)
        gathered = gather_over_ranks((self.skipped, bool(stop)))
        self.skipped = sorted({line for lines, _ in gathered for line in lines})
        logs.epochs(self.reports)
        self._save(better, better_ema)
        self.watch(report)
        return any(stop_requested for _, stop_requested in gathered)

    def _save(self, better: bool = False, better_ema: bool = False) -> None:
        if is_first():
            training = self.training | {"epoch": self.epoch, "step": self.step, "sums": self.sums,
                                        "best_val_top1": self.best, "best_val_ema_top1": self.best_ema}
            facts = dataclasses.replace(self.facts, training=training)
            if better:
                save_checkpoint(self.out / "best.safetensors", self.model, facts)
            if better_ema and self.ema:
                save_checkpoint(self.out / "best-ema.safetensors", self.ema.module, facts)
            save_report(self.out / "train.json", self._report(), self.config.command)
            # The last of the files: killed before, the run resumes from the earlier one, and writes the others again.
            save_checkpoint(self._last, self.model, facts, resume=resume_tensors(
                self.model, self.optimizer, self.ema and self.ema.module, self._scaler))
        # Other processes read the files written here.
        self.fabric.barrier()

    @property
    def _scaler(self) -> Any:
        return getattr(self.fabric.strategy.precision, "scaler", None)

    def _report(self) -> TrainReport:
        best, best_ema = ((str(self.out / f"{name}.safetensors"), score) if score >= 0 else (None, None)
                          for name, score in (("best", self.best), ("best-ema", self.best_ema)))
        return TrainReport(best[0], best_ema[0], str(self._last), best[1], best_ema[1], tuple(self.reports),
                           self.recipe, tuple(sorted({*self.skipped, *self.val_set.skipped})), self.devices)

    def _resume(self) -> None:
        restored, facts = load_model(self._last)
        expected, saved_as = ((f.model, f.prune, f.class_names) for f in (self.facts, facts))
        if expected != saved_as or not facts.training:
            raise TrainingError(f"{self._last} belongs to a run with another model, selector, keep ratio or other "
                                "classes; choose another folder or the same options.")
        if missing := sorted(RESUMED - facts.training.keys()):
            raise TrainingError(f"{self._last} does not record its {', '.join(missing)}; start in another folder.")
        parents = [(training["parent"] or {}).get("sha256") for training in (self.training, facts.training)]
        if parents[0] != parents[1]:
            raise TrainingError(f"{self._last} was trained from another backbone; pass the same --backbone.")
        values, trained = json.loads(json.dumps(self.recipe.to_dict())), facts.training["recipe"]
        changed = [name for name in values if trained.get(name) != values[name]]
        if changed:
            raise TrainingError(f"{self._last} was trained with other values for {', '.join(changed)}; "
                                "resume with the same.")
        self.model.load_state_dict(restored.state_dict())
        restore(read_resume(self._last), self.model, self.optimizer, self.ema and self.ema.module, self._scaler)
        saved = facts.training
        self._other_data = saved.get("data") if saved.get("data") != self.config.data else None
        self.epoch, self.step, self.sums = saved["epoch"], saved.get("step", 0), saved.get("sums", {})
        self.best, self.best_ema = saved["best_val_top1"], saved.get("best_val_ema_top1", -1.0)
        # If only the validation of the epoch is missing, its report has the rate of its last step.
        if self.step:
            self.scheduler.step_update(self.epoch * self.loader.steps + self.step - 1)
        # The history is not needed to train.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            history = json.loads((self.out / "train.json").read_text())
            self.reports = [EpochReport(**epoch) for epoch in history["epochs"] if epoch["epoch"] <= self.epoch]
            self.skipped = list(history["skipped"])
