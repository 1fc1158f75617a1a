"""Creates the parts of a training run: processes and precision, optimizer and learning-rate schedule."""
from __future__ import annotations

import logging
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler

from ..errors import ConfigError
from ..machine.hardware import machine
from ..machine.processes import (
    claim_share,
    gather_over_ranks,
    in_group,
    local_world_size,
    machine_count,
    world_size,
)
from ..model.dynamicvit import DynamicViT
from ..optional import installed, require
from ..runners.pytorch import torch_device
from .recipe import Recipe

# Lightning Fabric exists as a package of its own, and within the package `lightning`.
FABRIC = "lightning.fabric" if installed("lightning") and not installed("lightning_fabric") else "lightning_fabric"
# The distributions that contain it, under either name.
FABRIC_DISTRIBUTIONS = ("lightning-fabric", "lightning", "pytorch-lightning")
_fabric, _plugins, _strategies, _environments = (
    require(FABRIC + part) for part in ("", ".plugins", ".strategies", ".plugins.environments"))
_MixedPrecision: Any = _plugins.MixedPrecision

# Fabric's names for the mixed precisions.
MIXED: dict[str, Any] = {"bf16": "bf16-mixed", "fp16": "16-mixed"}


class _Mixed(_MixedPrecision):
    """Autocast without conversion of the inputs: Fabric would also round soft labels and sampling noise to 16 bits."""

    def convert_input(self, data: Any) -> Any:
        return data


def make_fabric(device: str | None, recipe: Recipe) -> Any:
    """Creates a Lightning Fabric, configured by torchrun's environment. Unlike Accelerate it has no state per
    process, so a dense teacher and its student can have different precisions.

    Raises:
        ConfigError: fp16 on a CPU, or more processes than GPUs.
    """
    kind = torch_device(device).type
    claim_share()
    if recipe.precision == "fp16" and kind == "cpu":
        raise ConfigError("A CPU cannot train in fp16; choose --precision bf16 or fp32.")
    # At level INFO, Fabric logs which precision it uses.
    logging.getLogger(FABRIC).setLevel(logging.WARNING)
    local = local_world_size()
    if kind == "cuda" and local > torch.cuda.device_count():
        raise ConfigError(f"{local} processes need as many GPUs, but this machine has {torch.cuda.device_count()}; "
                          "lower --nproc-per-node.")
    # The parameters of a frozen backbone have no gradient.
    shared = _strategies.DDPStrategy(find_unused_parameters=recipe.freeze_epochs > 0)
    strategy: Any = shared if world_size() > 1 else "auto"
    precision = _Mixed(MIXED[recipe.precision], kind) if recipe.precision in MIXED else _plugins.Precision()
    # Fabric would otherwise also believe the variables of another job, and those of SLURM, MPI or LSF.
    environment = _environments.TorchElasticEnvironment() if in_group() else _environments.LightningEnvironment()
    fabric = _fabric.Fabric(accelerator=kind, strategy=strategy, devices=local, num_nodes=machine_count(),
                            plugins=[precision, environment])
    fabric.launch()
    return fabric


def device_names(device: torch.device) -> tuple[str, ...]:
    """The GPU or processor of each process, by rank; every process must call this function."""
    return tuple(gather_over_ranks(machine()["gpu" if device.type == "cuda" else "processor"]))


def make_optimizer(model: DynamicViT, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; the backbone has its own learning-rate scale, and timm's rules exclude parameters from weight decay."""
    no_decay = {*model.backbone.no_weight_decay(), *(f"{s}.logits" for s in range(len(model.score_predictor)))}
    groups = []
    for module, scale in ((model.backbone, recipe.backbone_lr if model.prune else 1.0), (model.score_predictor, 1.0)):
        groups += [group | {"lr": recipe.peak_lr, "lr_scale": scale}
                   for group in param_groups_weight_decay(module, recipe.weight_decay, no_decay) if group["params"]]
    return torch.optim.AdamW(groups)


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> CosineLRScheduler:
    """Warm-up and cosine over all steps, with `steps` per epoch; a function of the step alone."""
    total, lowest = recipe.epochs * steps, min(recipe.lr_min, recipe.peak_lr)
    warmup = min(round(recipe.warmup_epochs * steps), total // 2)
    return CosineLRScheduler(optimizer, t_initial=max(total - warmup, 2), lr_min=lowest, warmup_t=warmup,
                             warmup_lr_init=lowest, warmup_prefix=True, t_in_epochs=False)
