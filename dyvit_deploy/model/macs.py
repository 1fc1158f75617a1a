"""Multiply-accumulates and parameters, counted on the real forward pass without computing it."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..config import ModelConfig, PruneConfig
from ..errors import ArtifactError
from .dynamicvit import DynamicViT
from .forms import FORMS


@dataclass(frozen=True)
class Cost:
    """`gmacs` are 1e9 multiply-accumulates for one image; `parameters` include the predictors."""

    gmacs: float
    parameters: int


def count_costs(config: ModelConfig, prunes: Sequence[PruneConfig | None], forms: Sequence[str] = ()) -> list[Cost]:
    """Counts convolutions and matrix products of the inference path, predictors included, per schedule.

    `forms` are those of the exported graph, see `forms`. PyTorch's own counter runs the model on the meta device:
    shapes are computed, values are not.

    Raises:
        ArtifactError: a form that this version does not know.
    """
    if unknown := [name for name in forms if name not in FORMS]:
        raise ArtifactError(f"The graph has a rewrite that this version does not know ({unknown[0]}); use the version "
                            "of dyvit-deploy that wrote it, or export it again.")
    costs = []
    models: dict[tuple[object, ...], DynamicViT] = {}
    for prune in prunes:
        form = (prune.stages, prune.selector, prune.fuse) if prune else ()
        with torch.device("meta"):
            if form not in models:
                models[form] = DynamicViT(config, prune).eval()
                for name in forms:
                    FORMS[name](models[form])
            image = torch.empty(1, 3, *config.image_size)
        model = models[form]
        model.keep_counts = prune.counts(config.patches) if prune else ()
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
            model(image)
        costs.append(Cost(counter.get_total_flops() / 2e9, sum(p.numel() for p in model.parameters())))
    return costs
