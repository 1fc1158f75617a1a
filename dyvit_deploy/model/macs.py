"""Counts multiply-accumulates and parameters of the forward pass, from shapes alone."""
from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..config import ModelConfig, PruneConfig, check_stages
from ..errors import ArtifactError, shorten
from ..settings.fields import as_arguments
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
    device, which computes shapes but no values. Blocks of one shape are counted once, because a file may claim hundreds
    of them. Equal counts are made once per process.

    Raises:
        ArtifactError: this version does not know a form.
        ConfigError: the sizes do not fit together.
    """
    return list(_count(config, tuple(prunes), tuple(forms)))


@functools.lru_cache(maxsize=256)
def _count(config: ModelConfig, prunes: tuple[PruneConfig | None, ...], forms: tuple[str, ...]) -> tuple[Cost, ...]:
    if unknown := [name for name in forms if name not in FORMS]:
        raise ArtifactError(f"The graph has a rewrite that this version does not know ({shorten(unknown[0])}); use the "
                            "version of dyvit-deploy that wrote it, or export it again.")
    costs = []
    models: dict[tuple[object, ...], DynamicViT] = {}
    for schedule in prunes:
        short, prune, repeats = shortened(config, schedule)
        form = (prune.stages, prune.selector, prune.fuse) if prune else ()
        with torch.device("meta"):
            if form not in models:
                models[form] = DynamicViT(short, prune).eval()
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
        single = [flops.get(f"DynamicViT.backbone.blocks.{i}", 0) / 2e9 for i in range(short.depth)]
        sizes = [sum(p.numel() for p in block.parameters()) for block in model.backbone.blocks]
        more = [count - 1 for count in repeats]
        costs.append(Cost(counter.get_total_flops() / 2e9 + sum(n * cost for n, cost in zip(more, single)),
                          sum(p.numel() for p in model.parameters()) + sum(n * size for n, size in zip(more, sizes)),
                          tuple(cost for cost, count in zip(single, repeats) for _ in range(count)), tuple(selectors)))
    return tuple(costs)


def shortened(config: ModelConfig, prune: PruneConfig | None,
              ) -> tuple[ModelConfig, PruneConfig | None, tuple[int, ...]]:
    """The same model with one block in place of equal ones, its schedule, and how many blocks each one stands for.

    Equal are the blocks between two stages; the last one is by itself, because the form "read-block" changes it.
    """
    stages = prune.stages if prune else ()
    check_stages(stages, config.depth)
    ends = [*stages, config.depth - 1, config.depth]
    starts = [0, *stages, config.depth - 1]
    runs = [end - start for start, end in zip(starts, ends)]
    repeats = tuple(count for count in runs if count)
    before = [sum(map(bool, runs[:number + 1])) for number in range(len(stages))]
    values: dict[str, Any] = {"depth": len(repeats)}
    # timm's own models have their depth from timm.
    if config.builder == "timm":
        values["options"] = as_arguments(dict(config.options) | values)
    return (dataclasses.replace(config, **values), prune and dataclasses.replace(prune, stages=tuple(before)), repeats)


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
