"""Which layers cost accuracy: each product alone in the lower precision, everything else in float32."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.text import Text

from ..config import PRECISIONS, QUANTIZED
from ..data.images import ImageSet, Track, no_track
from ..data.open import open_calibration
from ..errors import ConfigError, did_you_mean
from ..graph.names import on_score_path
from ..graph.read import Graph, Product, matrix_products
from ..parity.kept_tokens import stage_overlaps
from ..parity.tolerance import relative_error
from ..runners.base import Outputs, join_outputs, run_in_batches
from ..runners.ort import OrtRunner
from ..settings.fields import ALIASES
from ..settings.tables import Table
from .collect import examine, float32_facts, ranges_for
from .config import CalibrationConfig
from .policy import part_of, quantizable
from .quantize import quantize_cpu
from .ranges import Ranges
from .rounding import round_product

LOWER = tuple(p for p in PRECISIONS if p != "float32")
BATCH = 8
# Rows of the table, bars of the chart.
SHOWN = 25


@dataclass(frozen=True)
class LayerCost:
    """What one product alone costs.

    `error` is the relative error of the logits, None if infinite. `top1_agreement` is the share of images whose best
    class stays the same. `overlap` is the mean share of kept tokens at the worst stage, None if the graph does not
    output kept tokens.
    """

    layer: str
    node: str
    part: str
    error: float | None
    top1_agreement: float
    overlap: float | None


@dataclass(frozen=True)
class SensitivityReport:
    """All products, the costliest first."""

    KIND: ClassVar[str] = "sensitivity"

    artifact: str
    precision: str
    data: str
    images: int
    layers: tuple[LayerCost, ...]
    skipped: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def table(self) -> Table:
        """The costliest layers, with a bar as long as their share of the largest error."""
        title = f"{self.artifact}: each layer alone in {self.precision}, {self.images} images of {self.data}"
        rest = len(self.layers) - SHOWN
        table = Table(title=Text(title), title_justify="left",
                      caption=f"and {rest} that cost less" if rest > 0 else None, caption_justify="left")
        table.add_column("layer", overflow="fold")
        table.add_column("part")
        for column in ("logit error", "top-1 agree", "kept tokens"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("")
        largest = max((layer.error or 0 for layer in self.layers), default=0) or 1
        for layer in self.layers[:SHOWN]:
            share = 1.0 if layer.error is None else layer.error / largest
            table.add_row(Text(layer.layer), layer.part, percent(layer.error), f"{layer.top1_agreement:.2%}",
                          "-" if layer.overlap is None else f"{layer.overlap:.2%}", "█" * max(1, round(24 * share)))
        return table

    def chart(self, path: str | Path) -> None:
        """Draws the costliest layers as bars, to a .png or .svg file."""
        from ..artifacts.charts import bar_chart

        rows = [(layer.layer, 100 * layer.error) for layer in self.layers[:SHOWN] if layer.error is not None]
        bar_chart(path, [name for name, _ in rows], [cost for _, cost in rows],
                  title=f"{self.artifact}: the {len(rows)} costliest of {len(self.layers)} layers, each alone in "
                        f"{self.precision} ({self.images} images of {self.data})", unit="relative logit error, %")


def percent(error: float | None) -> str:
    """A relative error for people."""
    return "inf" if error is None else f"{100 * error:.3g}%"


def measure_sensitivity(path: str | Path, precision: str, calibration: CalibrationConfig, track: Track[Any] = no_track,
                        ) -> SensitivityReport:
    """Sensitivity of the float32 ONNX file `path` on `calibration`'s images; see `rank_layers`.

    Ranges for int8 and float8 are read where `calibration` names a file, else collected on the same images.
    """
    precision = ALIASES.get(precision, precision)
    if precision not in LOWER:
        raise ConfigError(f"Unknown precision {precision!r}.{did_you_mean(precision, LOWER)}")
    graph = Graph(path)
    images = open_calibration(calibration.data, float32_facts(graph).model, calibration.images)
    hashes = examine(images, calibration.allow_noise)
    known = ranges_for(graph, images, hashes, calibration, track) if precision in QUANTIZED else None
    return rank_layers(graph, precision, known, images, calibration.attention, track)


def rank_layers(graph: Graph, precision: str, ranges: Ranges | None, images: ImageSet, attention: bool = False,
                track: Track[Any] = no_track) -> SensitivityReport:
    """Runs the float32 `graph` once per product that `precision` would lower.

    int8 and float8 lower what the policy quantizes, with `ranges`; float16 and bfloat16 every product.
    """
    products = (quantizable(graph.structure, attention) if precision in QUANTIZED
                else [p for p in matrix_products(graph.structure) if not on_score_path(p.node)])
    pixels = [batch.images for batch in images.batches(BATCH)]
    expected = _run(graph, pixels)
    layers = []
    for product in track(products, f"lowering one layer at a time to {precision}", len(products)):
        draft = Graph("one.onnx", lower_one(graph, product, precision, ranges))
        layers.append(_cost(product, expected, _run(draft, pixels)))
    layers.sort(key=lambda layer: (-np.inf if layer.error is None else -layer.error, layer.node))
    return SensitivityReport(graph.path.name, precision, images.name, len(expected.logits), tuple(layers),
                             tuple(images.skipped))


def lower_one(graph: Graph, product: Product, precision: str, ranges: Ranges | None) -> Any:
    """The float32 `graph` with one product in `precision`."""
    if precision == "int8":
        assert ranges is not None
        return quantize_cpu(graph, ranges, [product])
    return round_product(graph.copy(), product, precision, ranges)


def _run(graph: Graph, pixels: Sequence[Any]) -> Outputs:
    with OrtRunner(graph, device="cpu") as runner:
        return join_outputs([run_in_batches(runner, images, BATCH) for images in pixels])


def _cost(product: Product, expected: Outputs, got: Outputs) -> LayerCost:
    overlaps = stage_overlaps(expected.kept, got.kept, (), 0.0)
    agreement = float((expected.logits.argmax(axis=1) == got.logits.argmax(axis=1)).mean())
    error = relative_error(expected.logits, got.logits)
    return LayerCost(product.name, product.node, part_of(product), error if np.isfinite(error) else None, agreement,
                     min((float(o.plain.mean()) for o in overlaps), default=None))


