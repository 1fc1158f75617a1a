"""Multiply-accumulates and parameters, counted on the real forward pass without computing it."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
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
        with (torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter,
              _metered(model.score_predictor, counter) as selectors):
            model(image)
        flops = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
        blocks = tuple(flops.get(f"DynamicViT.backbone.blocks.{i}", 0) / 2e9 for i in range(config.depth))
        costs.append(Cost(counter.get_total_flops() / 2e9, sum(p.numel() for p in model.parameters()), blocks,
                          tuple(selectors)))
    return costs


@contextlib.contextmanager
def _metered(selectors: Iterable[Any], counter: FlopCounterMode) -> Iterator[list[float]]:
    """The GMACs of each selector, filled while the model runs. The counter knows modules that are called; of selectors
    a method is."""
    watched = [selector for selector in selectors if hasattr(selector, "scores")]  # pooling has none, and costs nothing
    spent = [0.0] * len(watched)

    def metered(stage: int, scores: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*inputs: Any) -> Tensor:
            before = counter.get_total_flops()
            result = scores(*inputs)
            spent[stage] += (counter.get_total_flops() - before) / 2e9
            return result
        return run

    for stage, selector in enumerate(watched):
        selector.scores = metered(stage, selector.scores)                  # over the method of its class
    try:
        yield spent
    finally:
        for selector in watched:
            del selector.scores
