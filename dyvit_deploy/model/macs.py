"""Multiply-accumulates and parameters, counted on the real forward pass without computing it."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """`gmacs` are 1e9 multiply-accumulates for one image, `blocks` and `selectors` (one per stage) their parts in it;
    `parameters` include the predictors."""

    gmacs: float
    parameters: int
    blocks: tuple[float, ...] = ()
    selectors: tuple[float, ...] = ()


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
        flops = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
        blocks, stages = (tuple(_part(flops, f"{part}.{i}") for i in range(count)) for part, count in
                          (("backbone.blocks", config.depth), ("score_predictor", len(model.keep_counts))))
        costs.append(Cost(counter.get_total_flops() / 2e9, sum(p.numel() for p in model.parameters()), blocks, stages))
    return costs


def _part(flops: Mapping[str, int], module: str) -> float:
    """GMACs of one module, from the counts of it and of those inside it.

    A module of which only a method was called has no count of its own: then those inside it are added up.
    """
    path = f"{DynamicViT.__name__}.{module}"
    inside = [name for name in flops if name == path or name.startswith(f"{path}.")]
    outermost = [name for name in inside if not any(name.startswith(f"{other}.") for other in inside)]
    return sum(flops[name] for name in outermost) / 2e9
