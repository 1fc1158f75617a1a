"""A table of the zoo: input size, patches, parameters, and GMACs per keep ratio."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..config import PruneConfig, default_stages
from ..data.images import Track, no_track
from ..settings.tables import Table
from . import zoo

RATIOS = (1.0, 0.9, 0.8, 0.7, 0.5)


@dataclass(frozen=True)
class CatalogEntry:
    """One model. `parameters` include the predictors; `gmacs` are 1e9 multiply-accumulates, by keep ratio."""

    name: str
    image_size: tuple[int, int]
    patches: int
    stages: tuple[int, ...]
    parameters: int
    gmacs: dict[str, float]


@dataclass(frozen=True)
class Catalog:
    KIND: ClassVar[str] = "models"
    entries: tuple[CatalogEntry, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def table(self) -> Table:
        table = Table(title="Models (any timm VisionTransformer is timm:NAME)", title_justify="left")
        table.add_column("model", overflow="fold")
        for column in ("input", "patches", "stages", "params (M)", *(f"GMACs @{ratio}" for ratio in RATIOS)):
            table.add_column(column, justify="right")
        for entry in self.entries:
            table.add_row(entry.name, "x".join(map(str, entry.image_size)), str(entry.patches),
                          ",".join(map(str, entry.stages)), f"{entry.parameters / 1e6:.2f}",
                          *(f"{gmacs:.3f}" for gmacs in entry.gmacs.values()))
        return table


def list_models(names: Sequence[str] = (), track: Track[Any] = no_track) -> Catalog:
    """Counts parameters and GMACs of the models `names`, which may be `timm:NAME`; default: the whole zoo."""
    chosen = names or tuple(zoo.MODELS)
    return Catalog(tuple(_entry(name) for name in track(chosen, "counting", len(chosen))))


def _entry(name: str) -> CatalogEntry:
    from .build import resolve
    from .macs import count_costs

    config = resolve(name)
    stages = default_stages(config.depth)
    schedules = [PruneConfig.from_ratio(ratio, stages) for ratio in RATIOS]
    costs = count_costs(config, schedules)
    return CatalogEntry(name, config.image_size, config.patches, stages, costs[0].parameters,
                        {str(ratio): cost.gmacs for ratio, cost in zip(RATIOS, costs)})
