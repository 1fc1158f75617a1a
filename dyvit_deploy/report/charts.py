"""Axes and marks of the page's charts in percent of their sides, which the template draws as SVG.

Not matplotlib's: the marks of these charts follow the width of the page, its colours follow the theme, and the page
does without matplotlib.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..artifacts.charts import place_labels

# Width and height of a plot on a phone, in pixels; labels that have room there have room on wide screens.
NARROW = (300.0, 280.0)
# The largest value over the smallest, from which an axis is logarithmic.
WIDE = 30
# Width and height of a label of one or two letters, in pixels.
LABEL = 20.0


class Tick(NamedTuple):
    """A line of the grid: its place in percent, and its label."""

    at: float
    text: str


class Axis(NamedTuple):
    """Values from `low` to `high` along a side; `log` is a logarithmic axis."""

    low: float
    high: float
    ticks: tuple[Tick, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Percent from the low end, rounded: equal data give equal pages."""
        if self.log:
            return _share(*map(math.log10, (self.low, self.high, value)))
        return _share(self.low, self.high, value)


class Point(NamedTuple):
    """A labelled point: percent from the left and from the top, and the label's offset from it in pixels."""

    x: float
    y: float
    dx: int
    dy: int


def axis(values: Sequence[float], zero: bool = True, count: int = 5) -> Axis:
    """An axis over all `values`, from 0 where `zero`, with about `count` round ticks."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = (high - low) * 0.12 or abs(high) * 0.005 or 1.0
    low, high = (0.0, high * 1.08 or 1.0) if zero else (low - margin, high + margin)
    step = _round_step((high - low) / count)
    # The last tick is behind the last value.
    high = math.ceil(high / step - 1e-9) * step if zero else high
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    ticks = tuple(Tick(_share(low, high, n * step), f"{round(n * step, 12):,.{digits}f}")
                  for n in range(first, last + 1))
    return Axis(low, high, ticks)


def spans(values: Sequence[float]) -> Axis:
    """An axis from 0, or a logarithmic one where small values could not be distinguished on a linear one."""
    if not values or max(values) < WIDE * min(values):
        return axis(values)
    low, high = min(values) / 1.15, max(values) * 1.15
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 4 else (1,)
    marks = [step * 10.0 ** power for power in powers for step in steps]
    bare = Axis(low, high, (), True)
    return bare._replace(ticks=tuple(Tick(bare.at(mark), f"{mark:,.6g}") for mark in marks if low <= mark <= high))


def percents(values: Sequence[float], count: int = 5) -> Axis:
    """An axis of shares 0..1 in percent; it need not begin at 0."""
    found = axis([100 * value for value in values], zero=False, count=count)
    if found.high <= 100 and found.low >= 0:
        return found
    inside = tuple(tick for tick in found.ticks if 0 <= found.low + (found.high - found.low) * tick.at / 100 <= 100.001)
    return found._replace(ticks=inside)


def label_points(points: Sequence[tuple[float, float]]) -> list[Point]:
    """Points in percent from the left and the bottom, with the place of a label of one or two letters beside each."""
    pixels = [(x / 100 * NARROW[0], (100 - y) / 100 * NARROW[1]) for x, y in points]
    return [Point(x, round(100 - y, 3), round(dx), round(dy))
            for (x, y), (dx, dy, _) in zip(points, place_labels(pixels, (LABEL, LABEL), NARROW))]


def _share(low: float, high: float, value: float) -> float:
    return round(100 * (value - low) / (high - low), 3)


def _round_step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
