"""Counts multiply-accumulates and parameters of the forward pass, from shapes alone."""
from __future__ import annotations

import contextlib
import functools
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
    """The cost of one image. `gmacs` are 1e9 multiply-accumulates; `blocks` and `selectors` (one per stage) are
    their shares of it. `parameters` include the predictors."""

    gmacs: float
    parameters: int
    blocks: tuple[float, ...] = ()
    selectors: tuple[float, ...] = ()


def count_costs(config: ModelConfig, prunes: Sequence[PruneConfig | None], forms: Sequence[str] = ()) -> list[Cost]:
    """Counts convolutions and matrix products of the inference path, including predictors, for each schedule.

    `forms` are those of the exported graph, see the module `forms`. PyTorch's counter runs the model on the meta
    device, which computes shapes but no values. Equal counts are made once per process.

    Raises:
        ArtifactError: this version does not know a form.
    """
    return list(_count(config, tuple(prunes), tuple(forms)))


@functools.lru_cache(maxsize=256)
def _count(config: ModelConfig, prunes: tuple[PruneConfig | None, ...], forms: tuple[str, ...]) -> tuple[Cost, ...]:
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
        flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
        blocks = tuple(flops.get(f"DynamicViT.backbone.blocks.{i}", 0) / 2e9 for i in range(config.depth))
        costs.append(Cost(counter.get_total_flops() / 2e9, sum(p.numel() for p in model.parameters()), blocks,
                          tuple(selectors)))
    return tuple(costs)


@contextlib.contextmanager
def _metered(selectors: Iterable[Any], counter: FlopCounterMode) -> Iterator[list[float]]:
    """The GMACs of each selector, filled while the model runs. The counter attributes costs to modules, but the model
    calls the method `scores` of a selector."""
    # Pooling has no scores and no products.
    scoring = [selector for selector in selectors if hasattr(selector, "scores")]
    gmacs = [0.0] * len(scoring)

    def metered(stage: int, scores: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*inputs: Any) -> Tensor:
            before = counter.get_total_flops()
            result = scores(*inputs)
            gmacs[stage] += (counter.get_total_flops() - before) / 2e9
            return result
        return run

    for stage, selector in enumerate(scoring):
        # The instance attribute hides the method until it is deleted.
        selector.scores = metered(stage, selector.scores)
    try:
        yield gmacs
    finally:
        for selector in scoring:
            del selector.scores
