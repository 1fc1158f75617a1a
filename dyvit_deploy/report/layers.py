"""The layers of an artifact as a small table: the precision of each, and its multiply-accumulates."""
from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import NamedTuple

from ..artifacts.facts import ArtifactFacts
from ..config import ModelConfig, PruneConfig
from .charts import Tick, axis

SIGNS = {"float32": "32", "float16": "16", "bfloat16": "b16", "int8": "8", "float8": "f8"}
PREDICTOR, STEM, HEAD, OTHER = "predictor", "stem", "head", "other"
ROW_LABELS = {"attn.qkv": "q, k, v", "attn": "scores, context", "attn.proj": "projection",
              "mlp.fc1": "MLP, first", "mlp.fc2": "MLP, second"}


class Cell(NamedTuple):
    """The products of one layer: `kind` is their precision, "mixed" or "unknown", `sign` its abbreviation; `title`
    lists the products."""

    kind: str
    sign: str
    title: str


class LayerMap(NamedTuple):
    """One artifact: a column per block, with stem and head at the ends, a row per kind of layer."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    kinds: tuple[str, ...]


class BlockBar(NamedTuple):
    """One block: its costs, dense, pruned and of the predictor, as percentages of the axis, and as text in `title`;
    `stage` describes the stage before the block, if there is one."""

    name: str
    dense: float
    pruned: float
    predictor: float
    title: str
    stage: str


class MacChart(NamedTuple):
    """The costs of one schedule; `dense` and `pruned` are GMACs of the whole model."""

    bars: tuple[BlockBar, ...]
    ticks: tuple[Tick, ...]
    dense: float
    pruned: float


def layer_map(products: Mapping[str, str], facts: ArtifactFacts | None) -> LayerMap | None:
    """The table of an artifact's products; None if no product is known."""
    stages = facts.prune.stages if facts and facts.prune else ()
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for node, precision in products.items():
        cells.setdefault(_position(node, stages), {})[node] = precision
    if not cells:
        return None
    rows = [row for row in (*ROW_LABELS.values(), PREDICTOR) if any(r == row for r, _ in cells)]
    rows += sorted({row for row, _ in cells if row not in rows and row not in (STEM, HEAD, OTHER)})
    blocks = sorted({column for _, column in cells if column.isdigit()}, key=int)
    ends = {name: any(column == name for _, column in cells) for name in (STEM, HEAD, OTHER)}
    columns = (*([STEM] if ends[STEM] else []), *blocks, *([HEAD] if ends[HEAD] else []),
               *([OTHER] if ends[OTHER] else []))
    rows = rows or [OTHER]

    def cell(row: str, column: str) -> Cell | None:
        # Stem and head have no kinds of layers, so they fill only the first row.
        single = column in ends and row == rows[0]
        precisions = cells.get((column, column) if single else (row, column))
        return _cell(precisions) if precisions else None

    table = tuple((row, tuple(cell(row, column) for column in columns)) for row in rows)
    kinds = {c.kind for _, line in table for c in line if c}
    return LayerMap(columns, table, tuple(k for k in (*SIGNS, "mixed", "unknown") if k in kinds))


def _position(node: str, stages: tuple[int, ...]) -> tuple[str, str]:
    """Row and column of a product. A predictor is in the column of the block that it precedes."""
    module = node.split("/")[0]
    if match := re.fullmatch(r"blocks\.(\d{1,4})\.?(.*)", module):
        layer = re.match(r"(attn\.(?:qkv|proj)|attn$|mlp\.fc[12])(?=\.|$)", match[2])
        # In the last block, the queries are computed separately from keys and values; the row is the same.
        name = layer[1] if layer else "attn.qkv" if match[2].startswith("attn.") else match[2] or "block"
        return ROW_LABELS.get(name, name), match[1]
    if match := re.match(r"(?:score_predictor|selector)\.(\d{1,4})", module):
        stage = int(match[1])
        return PREDICTOR, str(stages[stage]) if stage < len(stages) else OTHER
    end = STEM if module.startswith("patch_embed") else HEAD if re.match(r"(aux_)?head\b", module) else OTHER
    return end, end


def _cell(precisions: Mapping[str, str]) -> Cell:
    kinds = list(dict.fromkeys(precisions.values()))
    title = "; ".join(f"{node}: {kind}" for node, kind in precisions.items())
    known = sorted(kinds, key=lambda kind: list(SIGNS).index(kind) if kind in SIGNS else len(SIGNS))
    signs = "+".join(SIGNS.get(kind, "?") for kind in reversed(known))
    return Cell((kinds[0] if kinds[0] in SIGNS else "unknown") if len(kinds) == 1 else "mixed", signs, title)


@functools.cache
def mac_chart(model: ModelConfig, prune: PruneConfig | None, forms: tuple[str, ...]) -> MacChart:
    """The cost of each block, of the dense model and with this schedule; see `model.macs`."""
    from ..model.macs import count_costs

    [dense], [pruned] = count_costs(model, [None]), count_costs(model, [prune], forms)
    stages = {block: stage for stage, block in enumerate(prune.stages if prune else ())}
    counts = prune.counts(model.patches) if prune else ()
    predictors = {block: pruned.selectors[stage] for block, stage in stages.items() if stage < len(pruned.selectors)}
    high = max(dense.blocks)
    scale = axis([1000 * high, *(1000 * (pruned.blocks[b] + p) for b, p in predictors.items())], count=4)
    bars = []
    for block, (full, left) in enumerate(zip(dense.blocks, pruned.blocks)):
        extra = predictors.get(block, 0.0)
        stage = (f"stage {stages[block]}: {counts[stages[block]]} of {model.patches} patches kept"
                 if block in stages else "")
        title = f"{1000 * left:.3g} of {1000 * full:.3g} million MACs"
        title += f", predictor {1000 * extra:.3g}" if extra else ""
        bars.append(BlockBar(f"block {block}", scale.at(1000 * full), scale.at(1000 * left), scale.at(1000 * extra),
                             title, stage))
    return MacChart(tuple(bars), scale.ticks, dense.gmacs, pruned.gmacs)
