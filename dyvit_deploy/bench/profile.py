"""The time an artifact spends in each place: stem, blocks before and after each cut, predictors, gathers, head."""
from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from ..runners.base import Runner
from ..runners.profiling import LayerTime
from ..settings.tables import Table
from .process import make_feed

RUNS = 20
# Layers are named after the modules that they come from; the first pattern that matches determines the place.
PLACE_PATTERNS = ((r"score_predictor\.(\d+)\b", "predictor"), (r"(?:selector|fuser)\.(\d+)\b", "gather"),
                  (r"blocks\.(\d+)\b", "block"), (r"()\b(norm|fc_norm|head|aux_head|attn_pool|logits)\b", "head"),
                  (r"()\b(patch_embed|pos_embed|cls_token|reg_token|norm_pre|images|proj)\b", "stem"))
# Operators that move rows and their indices after a gather.
MOVES = ("Concat", "Slice", "Split", "StridedSlice", "Expand", "Cast", "Reorder", "GatherND", "GatherElements")
# Places that only a pruned model has.
OVERHEAD = ("predictor", "gather")


@dataclass(frozen=True)
class PlaceTime:
    """The time of the `layers` layers of one place in ms, and its share of the sum over all layers."""

    place: str
    layers: int
    ms: float
    share: float


@dataclass(frozen=True)
class ProfileReport:
    """One artifact at one batch size. `overhead` is the share of predictors and gathers; `layers` are in the order
    in which they run. Times include the cost of the runtime's profiler itself, so compare shares."""

    artifact: str
    backend: str
    precision: str
    batch: int
    places: tuple[PlaceTime, ...]
    overhead: float
    layers: tuple[LayerTime, ...]

    def table(self) -> Table:
        table = Table(title=Text(f"{self.artifact} ({self.backend}, {self.precision}), batch {self.batch}"),
                      title_justify="left")
        for column in ("place", "layers", "ms", "share"):
            table.add_column(column, justify="left" if column == "place" else "right")
        for place in self.places:
            table.add_row(place.place, str(place.layers), f"{place.ms:.2f}", f"{place.share:.1%}")
        table.add_section()
        table.add_row("predictors + gathers", "", f"{self.overhead * self.total_ms:.2f}", f"{self.overhead:.1%}")
        table.add_row("all layers", str(len(self.layers)), f"{self.total_ms:.2f}", "")
        return table

    @property
    def total_ms(self) -> float:
        return sum(layer.ms for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"layers": [layer._asdict() for layer in self.layers]}


def profile(runner: Runner, batch: int, image_size: tuple[int, int] | None = None) -> ProfileReport:
    """Runs `runner`'s artifact on a random batch under its runtime's profiler.

    Raises:
        BackendError: the backend has no profiler for single layers.
    """
    layers = runner.layer_times(make_feed(runner, batch, image_size), RUNS)
    stages = runner.facts.prune.stages if runner.facts and runner.facts.prune else ()
    places = place_times(layers, stages)
    overhead = sum(p.share for p in places if p.place.startswith(OVERHEAD))
    return ProfileReport(runner.name, runner.label, runner.precision, batch, places, overhead, tuple(layers))


def place_times(layers: Sequence[LayerTime], stages: Sequence[int]) -> tuple[PlaceTime, ...]:
    """The time of each place of a model that prunes before blocks `stages`, in the order in which they run."""
    total = sum(layer.ms for layer in layers) or 1.0
    times: dict[str, list[float]] = {}
    for layer, place in zip(layers, locate(layers, stages)):
        times.setdefault(place, []).append(layer.ms)
    return tuple(PlaceTime(place, len(ms), sum(ms), sum(ms) / total) for place, ms in times.items())


def locate(layers: Sequence[LayerTime], stages: Sequence[int]) -> list[str]:
    """The place of each layer.

    A layer whose name matches no pattern belongs to the place of the next layer with a match, or to the last place if
    there is none. If it moves the rows that a gather has just picked, it belongs to the gather.
    """
    known = [_named_place(layer.name, stages) for layer in layers]
    for i, layer in enumerate(layers):
        if known[i] is None and i and (known[i - 1] or "").startswith("gather") and layer.operator in MOVES:
            known[i] = known[i - 1]
    following = next((place for place in reversed(known) if place), "other")
    places = []
    for place in reversed(known):
        following = place or following
        places.append(following)
    return places[::-1]


def _named_place(name: str, stages: Sequence[int]) -> str | None:
    for pattern, kind in PLACE_PATTERNS:
        if match := re.search(pattern, name):
            return _segment(int(match[1]), stages) if kind == "block" else f"{kind} {match[1]}".strip()
    return None


def _segment(block: int, stages: Sequence[int]) -> str:
    """The blocks between the two cuts around `block`, as the name of a place."""
    first = max((stage for stage in stages if stage <= block), default=0)
    last = min((stage for stage in stages if stage > block), default=None)
    if last is None:
        return f"blocks from {first}"
    return f"block {first}" if last == first + 1 else f"blocks {first} to {last - 1}"
