"""Where the marks of a chart lie, in percent of its sides; drawing them is the template's work. Pure functions."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

NARROW = (300.0, 280.0)                     # pixels of a chart on a phone, where labels must not collide either
WIDE = 30                                   # the largest value over the smallest, from which an axis is logarithmic
LABEL = 20.0                                # pixels that a label of one or two letters takes
# Places of a label around its point, in pixels, the best first: a front's line goes on to the left and downwards.
PLACES = tuple((round(r * math.cos(a)), round(r * math.sin(a))) for r in (18, 34, 50, 68)
               for a in (0, -math.pi / 2, -math.pi / 4, -3 * math.pi / 4, math.pi / 4, 3 * math.pi / 4, math.pi / 2,
                         math.pi))


class Tick(NamedTuple):
    """A line of the grid: where, in percent, and what stands beside it."""

    at: float
    text: str


class Axis(NamedTuple):
    """Values from `low` to `high` along a side; each power of ten takes the same room where `log`."""

    low: float
    high: float
    ticks: tuple[Tick, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Percent from the low end, rounded so that equal data draw equal pages."""
        if self.log:
            return _share(*map(math.log10, (self.low, self.high, value)))
        return _share(self.low, self.high, value)


class Point(NamedTuple):
    """A labelled point: percent from the left and from the top, and the label's offset from it in pixels."""

    x: float
    y: float
    dx: int
    dy: int


def axis(values: Sequence[float], text: Callable[[float], str] | None = None, zero: bool = True,
         count: int = 5) -> Axis:
    """Over all `values`, from 0 where `zero`, about `count` round ticks; `text` writes one, default: the number."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = (high - low) * 0.12 or abs(high) * 0.005 or 1.0
    low, high = (0.0, high * 1.08 or 1.0) if zero else (low - margin, high + margin)
    step = _round_step((high - low) / count)
    high = math.ceil(high / step - 1e-9) * step if zero else high          # a tick behind the last value
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    write = text or (lambda value: f"{value:,.{digits}f}")
    ticks = tuple(Tick(_share(low, high, n * step), write(round(n * step, 12))) for n in range(first, last + 1))
    return Axis(low, high, ticks)


def spans(values: Sequence[float]) -> Axis:
    """An axis from 0; a logarithmic one where the small values would all lie on one spot of it."""
    if not values or max(values) < WIDE * min(values):
        return axis(values)
    low, high = min(values) / 1.15, max(values) * 1.15
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 4 else (1,)
    marks = [step * 10.0 ** power for power in powers for step in steps]
    bare = Axis(low, high, (), True)
    return bare._replace(ticks=tuple(Tick(bare.at(mark), f"{mark:,.6g}") for mark in marks if low <= mark <= high))


def percents(values: Sequence[float], count: int = 5) -> Axis:
    """An axis of shares 0..1, written in per cent; it need not begin at 0."""
    found = axis([100 * value for value in values], zero=False, count=count)
    if found.high <= 100 and found.low >= 0:
        return found
    inside = tuple(tick for tick in found.ticks if 0 <= found.low + (found.high - found.low) * tick.at / 100 <= 100.001)
    return found._replace(ticks=inside)


def label_points(points: Sequence[tuple[float, float]], plot: tuple[float, float] = NARROW) -> list[Point]:
    """Points in percent from the left and the bottom, each with a label that covers neither points nor other labels,
    where there is room in a plot of that many pixels."""
    pixels = [(x / 100 * plot[0], (100 - y) / 100 * plot[1]) for x, y in points]
    taken: list[tuple[float, float]] = []
    labelled = []
    for (x, y), (left, top) in zip(points, pixels):
        def crowded(place: tuple[int, int], at: tuple[float, float] = (left, top)) -> tuple[int, float]:
            centre = at[0] + place[0], at[1] + place[1]
            hits = sum(_near(centre, other, LABEL) for other in taken)
            hits += sum(_near(centre, other, 0.7 * LABEL) for other in pixels)
            hits += not (8 <= centre[0] <= plot[0] - 8 and 8 <= centre[1] <= plot[1] - 8)
            return hits, PLACES.index(place)

        dx, dy = min(PLACES, key=crowded)
        taken.append((left + dx, top + dy))
        labelled.append(Point(x, round(100 - y, 3), dx, dy))
    return labelled


def _near(one: tuple[float, float], other: tuple[float, float], distance: float) -> bool:
    return max(abs(one[0] - other[0]), abs(one[1] - other[1])) < distance


def _share(low: float, high: float, value: float) -> float:
    return round(100 * (value - low) / (high - low), 3)


def _round_step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
