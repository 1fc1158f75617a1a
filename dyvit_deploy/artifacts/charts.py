"""Bar charts with matplotlib, and the label placer of all charts, which needs no matplotlib."""
from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..optional import require
from .files import atomic_write

CHART_SUFFIXES = (".png", ".svg")
# For any colour vision.
BLUE = "#0072b2"
# Radius of the mark of a point, and distances from it to its label, in pixels.
MARK, GAPS = 4.0, (8.0, 24.0, 40.0, 58.0)
# Sides of a point on which its label can go, the best first.
SIDES = ((1, -1), (1, 0), (0, -1), (-1, -1), (1, 1), (-1, 1), (0, 1), (-1, 0))
Pair = tuple[float, float]


def check_chart(path: str | Path) -> Path:
    """`path` when a chart can be written under that name; ConfigError otherwise."""
    path = Path(path)
    if path.suffix.lower() not in CHART_SUFFIXES:
        raise ConfigError(f"A chart is written as {' or '.join(CHART_SUFFIXES)}, not as {path.name!r}.")
    require("matplotlib", extra="calib")
    return path


def bar_chart(path: str | Path, labels: Sequence[str], values: Sequence[float], title: str, unit: str) -> None:
    """Horizontal bars, the first on top. The same values give the same bytes."""
    path = check_chart(path)
    figure = require("matplotlib.figure").Figure(figsize=(9, 1 + 0.26 * len(labels)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(labels)), values, color=BLUE)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    # A $ in a name would start a formula.
    axes.set_yticks(range(len(labels)), labels, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left", fontsize=10, parse_math=False)
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    write_figure(figure, path)


def write_figure(figure: Any, path: str | Path, dpi: float = 150) -> None:
    """Writes a matplotlib Figure, atomically. The same figure gives the same bytes."""
    path = check_chart(path)
    # Dates, versions and random identifiers would make equal charts differ.
    metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
    with require("matplotlib").rc_context({"svg.hashsalt": "dyvit"}), atomic_write(path) as temporary, \
            any_script():
        figure.savefig(temporary, dpi=dpi, metadata=metadata)


def place_labels(points: Sequence[Pair], size: Pair, plot: Pair) -> list[tuple[float, float, bool]]:
    """For each point the offset (x, y) of its label's centre in pixels, and whether the label covers nothing there.

    `points` and the `size` of a label are pixels of a `plot` of that size. A label goes to the least crowded place
    around its point, the closest first, then by SIDES: the line of a Pareto front whose y grows with x does not pass
    where y is lower. Labels are placed in the order of the points.
    """
    marks, half, sides = np.asarray(points), np.asarray(size) / 2, np.asarray(SIDES)
    # On a diagonal it is the corner of the label that is next to the point: half the gap suffices.
    gaps = np.asarray(GAPS)[:, None, None] / (1 + abs(sides).prod(axis=1))[:, None]
    places = (sides * (half + gaps)).reshape(-1, 2)
    taken, placed = np.empty((0, 2)), []
    for mark in marks:
        centres = mark + places
        hits = ((centres < half) | (centres > plot - half)).any(axis=1).astype(int)
        for others, distance in ((taken, size), (marks, half + MARK)):
            hits += (abs(centres[:, None] - others) < distance).all(axis=2).sum(axis=1)
        best = hits.argmin()
        taken = np.vstack([taken, centres[best]])
        placed.append((*places[best].tolist(), not hits[best]))
    return placed


@contextlib.contextmanager
def any_script() -> Iterator[None]:
    """A name in a script that no font here has is drawn as boxes, without a warning for each letter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield
