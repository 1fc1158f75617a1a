"""Bar charts with matplotlib."""
from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..optional import require
from .files import atomic_write

CHART_SUFFIXES = (".png", ".svg")


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
    bars = axes.barh(range(len(labels)), values, color="#0072b2")          # readable with any colour vision
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left", fontsize=10)
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


@contextlib.contextmanager
def any_script() -> Iterator[None]:
    """A name in a script that no font here has is drawn as boxes, without a warning for each letter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield
