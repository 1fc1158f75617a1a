"""The computation of one optimizer step: the losses of a batch, and the random draws of its token sampling."""
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..config import LEARNED, PruneConfig
from ..model.dynamicvit import DynamicViT
from ..model.lvvit import LVViT
from ..model.pruning import gumbel_noise
from .data import mixed_seed
from .losses import LossParts, kl_loss, ratio_loss, token_kl, token_mse
from .recipe import Recipe

# Selectors that need noise in training.
DRAWN = (*LEARNED, "random")


# On a CPU only the backward of fused attention is slow, and a teacher has no backward.
FORWARD = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]


class Draws(NamedTuple):
    """The random draws for the token sampling of some images.

    noise: per stage float32 [B, N, 2], Gumbel noise; None if nothing is sampled.
    keep: int64 [B, S], the number of patches that each image keeps; None without elastic training.
    """

    noise: tuple[Tensor, ...] | None = None
    keep: Tensor | None = None


def draw(recipe: Recipe, prune: PruneConfig, patches: int, epoch_step: tuple[int, int], rows: slice) -> Draws:
    """The draws for the images `rows` of the step `epoch_step`.

    They are drawn for the whole batch from (seed, epoch, step), so they do not depend on how the batch is divided
    among processes.
    """
    generator = torch.Generator().manual_seed(mixed_seed(recipe.seed, *epoch_step))
    keep = noise = None
    if recipe.elastic:
        keep = elastic_counts(recipe.elastic, recipe.batch, len(prune.stages), patches, generator)[rows]
    if prune.selector in DRAWN:
        noise = tuple(gumbel_noise((recipe.batch, patches, 2), generator)[rows] for _ in prune.stages)
    return Draws(noise, keep)


def elastic_counts(span: tuple[float, float], batch: int, stages: int, patches: int,
                   generator: torch.Generator) -> Tensor:
    """The number of patches that each image of a batch keeps after each stage, int64 [B, S].

    A third of the images keeps the low end of `span`, a third the high end, and a third a random ratio in between:
    the sandwich rule (Yu and Huang, ICCV 2019), with one pass over three thirds of a batch instead of three passes
    over the batch.
    """
    low, high = span
    ratios = torch.empty(batch, dtype=torch.float64).uniform_(low, high, generator=generator)
    ratios[0::3], ratios[1::3] = low, high
    stage = torch.arange(1, stages + 1)
    return (patches * ratios[:, None] ** stage).long().clamp(min=1)        # [B, S]


class TrainingStep(nn.Module):
    """The losses of a batch as one module, for distributed training and torch.compile.

    The teacher is not a submodule, because it is not trained, saved or synchronised.
    """

    def __init__(self, model: DynamicViT, teacher: DynamicViT | None, label_smoothing: float) -> None:
        super().__init__()
        self.model, self._teacher, self.label_smoothing = model, (teacher,), label_smoothing

    def forward(self, images: Tensor, labels: Tensor, noise: tuple[Tensor, ...] | None = None,
                keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The four unweighted losses, float32 [4], and the fraction kept after each stage, [S]."""
        # Labels from mixup are already smoothed.
        smoothing = 0.0 if labels.is_floating_point() else self.label_smoothing
        if self.model.prune is None:
            cls = F.cross_entropy(self.model(images).float(), labels, label_smoothing=smoothing)
            return torch.stack([cls, *(cls.new_zeros(()) for _ in LossParts._fields[1:])]), cls.new_zeros(0)
        parts, kept = student_losses(self.model, self._teacher[0], images, labels, smoothing, Draws(noise, keep))
        return torch.stack(parts), kept


def student_losses(model: DynamicViT, teacher: DynamicViT | None, images: Tensor, labels: Tensor,
                   label_smoothing: float = 0.0, draws: Draws = Draws(), samples: tuple[Tensor, ...] | None = None,
                   ) -> tuple[LossParts, Tensor]:
    """The four losses of one batch, and the fraction kept after each stage, float [S].

    Args:
        model: a student, in training mode.
        teacher: the dense backbone; without it both distillation losses are zero.
        images: float [B, 3, height, width], normalised.
        labels: int64 [B], or soft targets float [B, classes].
        draws: the random draws of the sampling; fields that are None are drawn here.
        samples: per stage float [B, N], used instead of sampling.
    """
    assert model.prune is not None
    out = model.forward_masked(images, samples, noise=draws.noise, keep=draws.keep)
    logits = out.logits.float()
    cls = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    ratio = kl = token = logits.new_zeros(())
    # With `keep` the counts are exact.
    if out.decisions and draws.keep is None:
        ratio = ratio_loss(out.decisions, model.prune.ratios(model.config.patches))
    if teacher is not None:
        with torch.no_grad(), sdpa_kernel(FORWARD):
            teacher_tokens = teacher.backbone.forward_features(images)
            teacher_logits = teacher.backbone.forward_head(teacher_tokens).float()
        kl = kl_loss(logits, teacher_logits)
        # Pooled tokens have no counterpart in the teacher.
        if out.decisions:
            token = _token_loss(model, teacher, out.tokens, teacher_tokens[:, teacher.prefix:], out.decisions[-1])
    kept = [decision.detach().mean() for decision in out.decisions]
    return LossParts(cls, ratio, kl, token), torch.stack(kept) if kept else logits.new_zeros(0)


def _token_loss(model: DynamicViT, teacher: DynamicViT, tokens: Tensor, teacher_tokens: Tensor,
                decision: Tensor) -> Tensor:
    if isinstance(model.backbone, LVViT):
        with torch.no_grad():
            target = teacher.backbone.aux_head(teacher_tokens).float()
        return token_kl(model.backbone.aux_head(tokens).float(), target, decision)
    return token_mse(tokens.float(), teacher_tokens.float(), decision)
