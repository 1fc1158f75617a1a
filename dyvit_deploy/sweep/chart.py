"""The Pareto chart: how much quality each millisecond buys."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..artifacts.charts import BLUE, check_chart, place_labels, write_figure
from ..optional import require
from .grid import short
from .report import SweepReport
from .target import LATENCY, SweepRow

FILES = ("pareto.png", "pareto.svg")
# For any colour vision.
COLOURS = {"float32": "#000000", "float16": BLUE, "bfloat16": "#009e73", "int8": "#d55e00", "float8": "#cc79a7"}
MARKERS = {"onnx": "o", "openvino": "s", "trt": "^", "rtx": "D"}
QUALITY = {"top1": "top-1, %", "dense_agreement": "class of the dense float32 model, %", "keep_ratio": "keep ratio"}
# Panels side by side, and the size of one in inches.
COLUMNS, PANEL = 2, (6.5, 4.6)
# If the values span less than this, in percent, the vertical axis spans twice this: small differences must look small.
LEAST_SPAN = 1.5
# Width of a letter and height of a line of the labels, in pixels of the figure.
LETTER, LINE = 7.7, 12.0


def draw_charts(report: SweepReport, folder: Path, new: bool = True) -> tuple[str, ...]:
    """Draws pareto.png and pareto.svg, a panel per batch size; returns no paths without rows.

    Existing files are kept unless there is something `new`.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    paths = [folder / name for name in FILES]
    if not report.rows:
        return ()
    if new or not all(path.is_file() for path in paths):
        check_chart(paths[0])
        figure = _figure(report)
        for path in paths:
            write_figure(figure, path)
    return tuple(map(str, paths))


def _figure(report: SweepReport) -> Any:
    batches = [b for b in report.config.batches if any(row.batch == b for row in report.rows)]
    columns = min(COLUMNS, len(batches))
    lines = -(-len(batches) // columns)
    figure = require("matplotlib.figure").Figure(figsize=(PANEL[0] * columns, PANEL[1] * lines + 0.7),
                                                 layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False, sharey=True).flat)
    for axes in panels[len(batches):]:
        axes.set_visible(False)
    drawn = [_panel(axes, report, batch) for axes, batch in zip(panels, batches)]
    values = [y for _, points in drawn for _, _, y in points]
    if report.quality != "keep_ratio" and max(values) - min(values) < LEAST_SPAN:
        middle = (max(values) + min(values)) / 2
        panels[0].set_ylim(middle - LEAST_SPAN, middle + LEAST_SPAN)
    title = f"{Path(report.checkpoint).name}; numbers are keep ratios, the line is the Pareto front"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, parse_math=False)
    _legend(figure, report.rows)
    # The layout must be final before labels are placed.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes, points in drawn:
        _label(axes, points)
    return figure


def _panel(axes: Any, report: SweepReport, batch: int) -> tuple[Any, list[tuple[SweepRow, float, float]]]:
    """Draws one batch size; returns its axes and the points to label."""
    scale = 1 if report.quality == "keep_ratio" else 100

    def place(row: SweepRow) -> tuple[float, float]:
        return getattr(row, LATENCY), scale * getattr(row, report.quality)

    front = [place(row) for row in report.front(batch)]
    axes.plot(*zip(*front), color="#999999", linewidth=1.5, zorder=1.5)
    points = [(row, *place(row)) for row in report.rows if row.batch == batch]
    for row, x, y in points:
        axes.scatter([x], [y], s=42, marker=MARKERS[row.backend], color=COLOURS[row.precision],
                     alpha=1.0 if row.pareto else 0.45, linewidths=0, zorder=2)
    axes.set_title(f"batch {batch}", loc="left", fontsize=10)
    axes.set_xlabel("latency of the batch, median, ms")
    images = report.images_of(report.quality)
    axes.set_ylabel(QUALITY[report.quality] + (f", {images}" if images else ""))
    axes.yaxis.set_tick_params(labelleft=True)
    axes.set_xlim(left=0)
    axes.margins(x=0.1, y=0.12)
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes, points


def _legend(figure: Any, rows: Sequence[SweepRow]) -> None:
    """Colours are precisions, markers are backends."""
    line = require("matplotlib.lines").Line2D
    handles = [line([], [], marker="o", linestyle="", color=colour, label=short(name))
               for name, colour in COLOURS.items() if any(row.precision == name for row in rows)]
    handles += [line([], [], marker=marker, linestyle="", color="#777777", label=name)
                for name, marker in MARKERS.items() if any(row.backend == name for row in rows)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)


def _label(axes: Any, points: Sequence[tuple[SweepRow, float, float]]) -> None:
    """Keep ratios beside their points, those of the front first; a label without room is left out."""
    points = sorted(points, key=lambda point: not point[0].pareto)
    texts = [f"{row.keep_ratio:g}" for row, _, _ in points]
    pixels = axes.transData.transform([place for _, *place in points]) - axes.bbox.min
    size, scale = (LETTER * max(map(len, texts)), LINE), 72 / axes.figure.dpi
    for text, (row, *point), (x, y, free) in zip(texts, points, place_labels(pixels.tolist(), size, axes.bbox.size)):
        if free:
            far, colour = abs(x) > size[0] or abs(y) > 2 * size[1], COLOURS[row.precision]
            leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.5} if far else None
            axes.annotate(text, point, (scale * x, scale * y), textcoords="offset points", ha="center", va="center",
                          fontsize=8, fontweight="bold" if row.pareto else "normal", color=colour, arrowprops=leader)
