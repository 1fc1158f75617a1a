"""What one optimizer step computes: the losses of a batch, and what its sampling draws."""
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

DRAWN = (*LEARNED, "random")               # selectors that training draws noise for


# Fused attention is slow on a CPU in its backward only, which a teacher does not have.
FORWARD = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]


class Draws(NamedTuple):
    """What is random in the token sampling of some images.

    noise: per stage float32 [B, N, 2], Gumbel noise, or None where nothing is sampled.
    keep: int64 [B, S], patches that each image keeps (elastic training), or None.
    """

    noise: tuple[Tensor, ...] | None = None
    keep: Tensor | None = None


def draw(recipe: Recipe, prune: PruneConfig, patches: int, when: tuple[int, int], rows: slice) -> Draws:
    """The draws of the images `rows` of one step.

    They are made for the whole batch from (seed, epoch, step), so that it does not matter how the batch is
    divided among processes.
    """
    generator = torch.Generator().manual_seed(mixed_seed(recipe.seed, *when))
    keep = noise = None
    if recipe.elastic:
        keep = elastic_counts(recipe.elastic, recipe.batch, len(prune.stages), patches, generator)[rows]
    if prune.selector in DRAWN:
        noise = tuple(gumbel_noise((recipe.batch, patches, 2), generator)[rows] for _ in prune.stages)
    return Draws(noise, keep)


def elastic_counts(span: tuple[float, float], batch: int, stages: int, patches: int,
                   generator: torch.Generator) -> Tensor:
    """Patches that each image of a batch keeps after each stage, int64 [B, S].

    A third of the images takes the low end, a third the high end, a third a ratio between them: the sandwich
    rule (Yu and Huang, ICCV 2019), with its three passes over a batch made one pass over three parts.
    """
    low, high = span
    ratios = torch.empty(batch, dtype=torch.float64).uniform_(low, high, generator=generator)
    ratios[0::3], ratios[1::3] = low, high
    stage = torch.arange(1, stages + 1)
    return (patches * ratios[:, None] ** stage).long().clamp(min=1)        # [B, S]


class TrainingStep(nn.Module):
    """The losses of a batch as one module, which several processes can share and torch.compile can take.

    The teacher is no submodule: it is neither trained, nor saved, nor synchronised.
    """

    def __init__(self, model: DynamicViT, teacher: DynamicViT | None, label_smoothing: float) -> None:
        super().__init__()
        self.model, self._teacher, self.label_smoothing = model, (teacher,), label_smoothing

    def forward(self, images: Tensor, labels: Tensor, noise: tuple[Tensor, ...] | None = None,
                keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The four unweighted losses, float32 [4], and the fraction kept after each stage, [S]."""
        smoothing = 0.0 if labels.is_floating_point() else self.label_smoothing  # mixup has smoothed them
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
        teacher: the dense backbone; None leaves both distillation parts at zero.
        images: float [B, 3, height, width], normalised.
        labels: int64 [B], or soft targets float [B, classes].
        draws: what the sampling draws; made here where it is None.
        samples: per stage float [B, N], in place of sampling.
    """
    assert model.prune is not None
    out = model.forward_masked(images, samples, noise=draws.noise, keep=draws.keep)
    logits = out.logits.float()
    cls = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    ratio = kl = token = logits.new_zeros(())
    if out.decisions and draws.keep is None:                               # else the counts are exact
        ratio = ratio_loss(out.decisions, model.prune.ratios(model.config.patches))
    if teacher is not None:
        with torch.no_grad(), sdpa_kernel(FORWARD):
            teacher_all = teacher.backbone.forward_features(images)
            teacher_logits = teacher.backbone.forward_head(teacher_all).float()
        kl = kl_loss(logits, teacher_logits)
        if out.decisions:                                                  # pooled tokens have no counterpart
            token = _token_loss(model, teacher, out.tokens, teacher_all[:, teacher.prefix:], out.decisions[-1])
    kept = [decision.detach().mean() for decision in out.decisions]
    return LossParts(cls, ratio, kl, token), torch.stack(kept) if kept else logits.new_zeros(0)


def _token_loss(model: DynamicViT, teacher: DynamicViT, ours: Tensor, theirs: Tensor, decision: Tensor) -> Tensor:
    if isinstance(model.backbone, LVViT):
        with torch.no_grad():
            target = teacher.backbone.aux_head(theirs).float()
        return token_kl(model.backbone.aux_head(ours).float(), target, decision)
    return token_mse(ours.float(), theirs.float(), decision)
