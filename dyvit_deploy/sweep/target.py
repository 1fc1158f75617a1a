"""Selects rows of a sweep: the Pareto front, and the best row for a budget. Pure functions."""
from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..errors import ConfigError, did_you_mean
from ..statistics.counts import as_fraction, counted, exact
from ..statistics.estimates import Proportion
from .grid import short

FRACTIONS = ("top1", "overlap", "agreement", "dense_agreement")
METRICS = ("latency_ms_p50", "latency_ms_p90", "latency_ms_p99", "images_per_sec", "size_mib", "speedup", *FRACTIONS)
# Metrics that can rank artifacts across keep ratios, the most reliable first.
QUALITIES = ("top1", "dense_agreement")
LATENCY = "latency_ms_p50"
RELATIONS: dict[str, Callable[[Fraction, Fraction], bool]] = {
    "<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt}
_TARGET = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*(-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(%?)\s*")


@dataclass(frozen=True)
class SweepRow:
    """One artifact at one batch size. Latencies are milliseconds for the whole batch, shares are fractions 0..1.

    `overlap` (the share of kept tokens at the worst stage) and `agreement` (the share of images with the same class)
    compare with the float32 model at the same keep ratio; `dense_agreement` compares with the dense model, if there are
    no labels for `top1`. `speedup` is over the dense float32 model in ONNX Runtime, from the same `run`. `command`
    makes the artifact, `pareto` marks the front of its batch size. `images` is the number of images of `top1` or
    `dense_agreement`, `compared` that of `agreement` and `overlap`, None if unknown.
    """

    artifact: str
    keep_ratio: float
    precision: str
    backend: str
    batch: int
    size_mib: float
    top1: float | None
    agreement: float | None
    overlap: float | None
    dense_agreement: float | None
    latency_ms_p50: float
    latency_ms_p90: float
    latency_ms_p99: float
    images_per_sec: float
    speedup: float | None
    runs: int
    stable: bool
    run: int
    command: str
    pareto: bool = False
    images: int | None = None
    compared: int | None = None

    def images_of(self, metric: str) -> int | None:
        """The images that `metric` is a share of; None for other metrics, or if unknown."""
        return {"agreement": self.compared, "top1": self.images, "dense_agreement": self.images}.get(metric)

    def basis(self, metric: str) -> str:
        """The value of `metric`, and for a share of images their number and its 95 % interval."""
        value, images = getattr(self, metric), self.images_of(metric)
        text = f"{metric}={value:.4g}"
        if value is None or not images:
            return text
        low, high = Proportion(images, counted(value, images)).interval
        return f"{text} ({images:,} images, 95 % interval {low:.4g} to {high:.4g})"

    @property
    def label(self) -> str:
        return f"keep ratio {self.keep_ratio:g}, {short(self.precision)}, {self.backend}, batch {self.batch}"


@dataclass(frozen=True)
class Target:
    """One requirement, as in `latency_ms_p99<=20`."""

    metric: str
    relation: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric}{self.relation}{self.bound:g}"

    def met(self, row: SweepRow) -> bool:
        value = getattr(row, self.metric)
        if value is None:
            return False
        images = row.images_of(self.metric)
        return RELATIONS[self.relation](as_fraction(value, images) if images else exact(value), exact(self.bound))

    def doubt(self, row: SweepRow) -> str:
        """How many images would decide whether a share meets the target, if those of the row do not; else empty."""
        value, images = getattr(row, self.metric), row.images_of(self.metric)
        if value is None or not images:
            return ""
        met, bound = counted(value, images), exact(self.bound)
        above = self.relation.startswith(">")
        doubt = Proportion(images, images - met if above else met).doubt(1 - bound if above else bound)
        return f"{self}: {doubt}" if doubt else ""

    def miss(self, row: SweepRow) -> float:
        """The relative distance of the row from the bound: 0 if the target is met, infinite if the value is unknown."""
        value = getattr(row, self.metric)
        if self.met(row) or value is None:
            return 0.0 if value is not None else float("inf")
        return float(abs(value - self.bound)) / max(abs(self.bound), 1e-9)


def parse_targets(texts: Iterable[str]) -> tuple[Target, ...]:
    """Parses targets like `latency_ms_p99<=20`, separated by commas; fractions also as percent, `top1>=97%`.

    Raises:
        ConfigError: a text has another form, an unknown metric or an invalid number.
    """
    return tuple(_parse(target) for text in texts for target in text.split(","))


def _parse(text: str) -> Target:
    match = _TARGET.fullmatch(text)
    if match is None:
        raise ConfigError(f"A target is written METRIC<=NUMBER (or >=, <, >), like latency_ms_p99<=20, not {text!r}.")
    metric, relation, number, percent = match.groups()
    if metric not in METRICS:
        raise ConfigError(f"Unknown metric {metric!r}.{did_you_mean(metric, METRICS)}")
    if percent and metric not in FRACTIONS:
        raise ConfigError(f"{metric} is not a fraction, so % does not apply; write {metric}{relation}{number}.")
    bound = float(number)
    if not math.isfinite(bound):
        raise ConfigError(f"The number of a target must be finite, not {number}; write one like latency_ms_p99<=20.")
    # 0.7 / 100 is not the number closest to 0.007.
    bound = float(exact(bound) / 100) if percent else bound
    if metric in FRACTIONS and not 0 <= bound <= 1:
        raise ConfigError(f"{metric} is a fraction from 0 to 1, not {bound:g}; write 0.97 or 97%.")
    return Target(metric, relation, bound)


def quality_of(rows: Sequence[Any]) -> str:
    """The metric that ranks these rows: the first of QUALITIES that all of them have, else the keep ratio.

    Agreement with float32 at the same keep ratio cannot rank them: however low the ratio, float32 agrees with itself.
    """
    return next((name for name in QUALITIES if rows and all(getattr(r, name) is not None for r in rows)), "keep_ratio")


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, value) on the Pareto front, by rising cost.

    A point is on the front unless another one has at most its cost and at least its value, one of the two strictly;
    equal points are all on it.
    """
    front: list[int] = []
    best = float("-inf")
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        cost, value = points[index]
        if value > best or (front and points[front[-1]] == (cost, value)):
            front.append(index)
            best = value
    return front


def rank(row: SweepRow, quality: str) -> tuple[float, ...]:
    """A sort key with the best row first: by quality, then by latency. Rows of one keep ratio tie if that is the
    quality, so agreement comes before latency then."""
    agreement = row.agreement or 0.0 if quality == "keep_ratio" else 0.0
    return -getattr(row, quality), -agreement, row.latency_ms_p50


@dataclass(frozen=True)
class Recommendation:
    """The `best` row that meets all targets; if there is none it is false, and `closest` misses them by least."""

    targets: tuple[Target, ...]
    quality: str
    best: SweepRow | None
    closest: SweepRow | None

    def __bool__(self) -> bool:
        return self.best is not None

    @property
    def requirement(self) -> str:
        """The targets, as text."""
        return ", ".join(map(str, self.targets))

    @property
    def sentence(self) -> str:
        if best := self.best:
            figures = [f"latency_ms_p50={best.latency_ms_p50:.3g}", f"latency_ms_p99={best.latency_ms_p99:.3g}",
                       best.basis(self.quality)]
            doubts = "".join(f"; {doubt}" for t in self.targets if (doubt := t.doubt(best)))
            return f"Best for {self.requirement}: {best.artifact} ({best.label}), {', '.join(figures)}{doubts}."
        if self.closest is None:
            return f"No artifact was timed, so none meets {self.requirement}."
        unknown = [t.metric for t in self.targets if getattr(self.closest, t.metric) is None]
        if unknown:
            needs = "; sweep with --data that has labels" if "top1" in unknown else ""
            return f"No artifact can meet {self.requirement}, because {' and '.join(unknown)} is not known{needs}."
        missed = [self.closest.basis(t.metric) for t in self.targets if not t.met(self.closest)]
        return (f"No artifact meets {self.requirement}; the closest is {self.closest.artifact} ({self.closest.label}) "
                f"with {', '.join(missed)}.")


def choose(rows: Sequence[SweepRow], targets: Sequence[Target]) -> Recommendation:
    """The best of the rows that meet all targets: by `quality_of`, ties by lower latency."""
    quality = quality_of(rows)
    meeting = sorted((row for row in rows if all(t.met(row) for t in targets)), key=lambda row: rank(row, quality))
    if meeting:
        return Recommendation(tuple(targets), quality, meeting[0], None)
    closest = sorted(rows, key=lambda row: (sum(t.miss(row) for t in targets), rank(row, quality)))
    return Recommendation(tuple(targets), quality, None, closest[0] if closest else None)
