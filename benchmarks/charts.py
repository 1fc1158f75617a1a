#!/usr/bin/env python3
"""Draws the README's charts from benchmarks/results/*.json, into the same folder.

    python benchmarks/charts.py            writes peers.svg and scale.svg
    python benchmarks/charts.py --png      also writes them as .png

The same results and the same matplotlib give the same bytes. A chart whose result does not exist is skipped.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from tables import PEERS, RESULTS, SCALE

from dyvit_deploy.artifacts.files import atomic_write

# Distinguishable with any colour vision.
GREY, BLUE, ORANGE = "#999999", "#0072b2", "#e69f00"
COLOURS = {"dense": GREY, "pruned here": BLUE, "pruned by other means": ORANGE}
KINDS = {"dense": "dense", "pruned": "pruned here", "pruned, no rewrites": "pruned here"}
# Labels in the lighter grey of the lines would be too faint.
TEXT = {"dense": "#666666", "pruned": BLUE}
FAMILIES = ("PyTorch", "ONNX Runtime", "OpenVINO")
# Text is not converted to outlines: the file is a third as large, and can be searched.
STYLE = {"svg.hashsalt": "dyvit", "svg.fonttype": "none", "font.size": 8, "axes.titlesize": 9, "axes.spines.top": False,
         "axes.spines.right": False}


def peers_chart(result: dict[str, Any]) -> Figure:
    """Images/s at the largest batch as bars, one panel per runtime."""
    batch = max(row["batch"] for row in result["rows"])
    rows = [row for row in result["rows"] if row["batch"] == batch]
    groups = {family: [row for row in rows if row["backend"].startswith(family)] for family in FAMILIES}
    groups = {family: found for family, found in groups.items() if found}
    heights = [len(found) + 1 for found in groups.values()]
    figure = Figure(figsize=(8, 0.6 + 0.24 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(groups), sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (family, found) in zip(panels, groups.items()):
        bars = axes.barh(range(len(found)), [row["images_per_sec"] for row in found], height=0.75,
                         color=[COLOURS[_kind(row)] for row in found])
        axes.bar_label(bars, [_figure_text(row) for row in found], padding=3)
        axes.set_yticks(range(len(found)), [_label(row, family) for row in found])
        # The first row is on top.
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_title(family, loc="left", fontweight="bold")
        axes.tick_params(axis="x", labelbottom=axes is panels[-1])
    panels[-1].set_xlim(0, 1.2 * max(row["images_per_sec"] for row in rows))
    panels[-1].set_xlabel(f"images/s, batch {batch}; in brackets against the dense model in ONNX Runtime, float32")
    figure.suptitle(f"{result['model']} and its peers at keep ratio {result['keep_ratio']}, {_machine(result)}",
                    x=0.01, ha="left", fontsize=10)
    shown = [kind for kind in COLOURS if any(_kind(row) == kind for row in rows)]
    figure.legend(handles=[Patch(color=COLOURS[kind], label=kind) for kind in shown], loc="outside lower right",
                  ncols=3, frameon=False)
    return figure


def _kind(row: dict[str, Any]) -> str:
    """The key in COLOURS of a row's bar."""
    return KINDS.get(row["what"], "pruned by other means")


def _label(row: dict[str, Any], family: str) -> str:
    """The label of a bar: without the runtime, which is the panel's title, but with eager or compiled."""
    return ", ".join(filter(None, [row["model"], row["what"], row["backend"].removeprefix(family).strip(),
                                   row["precision"]]))


def _figure_text(row: dict[str, Any]) -> str:
    settled = "" if row["stable"] else "~"
    return f"{settled}{row['images_per_sec']:.1f}" + (f" ({row['speedup']:.2f}x)" if row["speedup"] else "")


def scale_chart(result: dict[str, Any]) -> Figure:
    """Latency of dense and pruned against multiply-accumulates and against threads, with ideal scaling."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    series = list(dict.fromkeys(row["series"] for row in result["rows"]))
    panels = figure.subplots(1, len(series), squeeze=False)[0]
    for axes, name in zip(panels, series):
        rows = [row for row in result["rows"] if row["series"] == name]
        by_threads = name == "threads"
        across = (lambda row: row["threads"]) if by_threads else (lambda row: row["gmacs"] * row["batch"])
        for what, colour in (("dense", GREY), ("pruned", BLUE)):
            line = sorted((row for row in rows if row["what"] == what), key=across)
            axes.plot([across(row) for row in line], [row["latency_ms_p50"] for row in line], "o-", color=colour,
                      markersize=4, label=what)
            # Both curves follow one diagonal, so each gets its labels on one side.
            for row in [] if by_threads else line:
                side, place = ("left", (5, -9)) if what == "dense" else ("right", (-5, 4))
                axes.annotate(_at(row), (across(row), row["latency_ms_p50"]), fontsize=7, color=TEXT[what], ha=side,
                              textcoords="offset points", xytext=place)
        first = min((row for row in rows if row["what"] == "dense"), key=across)
        ends = [min(map(across, rows)), max(map(across, rows))]
        way = [ends[0] * (ends[1] / ends[0]) ** (step / 20) for step in range(21)]
        ideal = [first["latency_ms_p50"] * (at / across(first)) ** (-1 if by_threads else 1) for at in way]
        axes.plot(way, ideal, ":", color="black", linewidth=1, label="in proportion, from the first dense one")
        _finish(axes, name, by_threads, sorted({row["threads"] for row in rows}), rows[0])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{result['model']}, dense and pruned at keep ratio {result['keep_ratio']}, ONNX Runtime float32, "
                    f"{_machine(result)}", x=0.01, ha="left", fontsize=10)
    return figure


def _at(row: dict[str, Any]) -> str:
    return f"{row['size']} px" if row["series"] == "image size" else str(row["batch"])


def _finish(axes: Axes, name: str, by_threads: bool, threads: list[int], first: dict[str, Any]) -> None:
    titles = {"image size": f"image size, batch {first['batch']}", "batch": f"batch, {first['size']} px",
              "threads": f"threads, batch {first['batch']}, {first['size']} px"}
    axes.set_title(titles[name], loc="left", fontweight="bold")
    axes.margins(0.25)
    axes.set_ylabel("ms per call, median")
    axes.set_xlabel("threads" if by_threads else "GMACs per call")
    if by_threads:
        axes.set_xticks(threads)
        axes.set_ylim(bottom=0)
        return
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())


def _machine(result: dict[str, Any]) -> str:
    return f"{result['machine']['processor']}, {result['machine']['logical_cores']} cores"


CHARTS: dict[str, tuple[str, Callable[[dict[str, Any]], Figure]]] = {
    "peers": (PEERS, peers_chart), "scale": (SCALE, scale_chart)}


def draw(results: Path, suffixes: tuple[str, ...] = (".svg",)) -> list[Path]:
    """Writes the charts of the results in the folder `results` into the same folder."""
    written = []
    with matplotlib.rc_context(STYLE):
        for name, (source, make) in CHARTS.items():
            if not (results / source).exists():
                continue
            for suffix in suffixes:
                figure, path = make(json.loads((results / source).read_text())), results / f"{name}{suffix}"
                with atomic_write(path) as temporary:
                    # Dates and versions would make equal charts differ.
                    figure.savefig(temporary, dpi=110, metadata={"Date": None} if suffix == ".svg" else
                                   {"Software": None})
                written.append(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder with the results")
    parser.add_argument("--png", action="store_true")
    options = parser.parse_args()
    print(*draw(options.results, (".svg", ".png") if options.png else (".svg",)), sep="\n")


if __name__ == "__main__":
    main()
