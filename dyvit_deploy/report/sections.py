"""The parts of the page as data for its template: charts, tables, the family tree."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..sweep.target import pareto_front
from .charts import Axis, Point, axis, label_points, percents, spans
from .collect import Collection, Entry
from .layers import LayerMap, MacChart, layer_map, mac_chart
from .records import Environment, Speed
from .verdicts import best_eval, figure, lowered, origin_of, parent_of, percent, short, speeds_of

METRICS = {"top1": "top-1", "agreement": "same class as its reference"}


class Line(NamedTuple):
    """A straight line of a chart, in percent from the left and from the top."""

    x1: float
    y1: float
    x2: float
    y2: float


class Trade(NamedTuple):
    """One artifact in a Pareto chart."""

    entry: Entry
    point: Point
    quality: str
    speed: Speed
    images_per_sec: str
    speedup: str
    best: bool


class TradeChart(NamedTuple):
    """Quality against images/s at one batch size; `front` joins those that no other beats."""

    title: str
    metric: str
    x: Axis
    y: Axis
    trades: tuple[Trade, ...]
    front: tuple[Line, ...]
    missing: tuple[Entry, ...]


class Range(NamedTuple):
    """One latency: percent along the axis, the 95 % intervals as pairs of such, and the figures."""

    name: str
    letter: str
    speed: Speed
    p50: float
    p90: float
    p99: float
    intervals: tuple[tuple[float, float], ...]
    figures: tuple[str, str, str]


class LatencyChart(NamedTuple):
    """The latencies at one batch size, the fastest first."""

    title: str
    x: Axis
    rows: tuple[Range, ...]


class Branch(NamedTuple):
    """A file in the family tree; `entry` is None for one that is not in the folder, as `note` says."""

    name: str
    digest: str
    entry: Entry | None
    note: str
    children: tuple[Any, ...]


class Cost(NamedTuple):
    """The block costs of the artifacts that share a schedule and graph."""

    entries: tuple[Entry, ...]
    chart: MacChart
    share: str


def trade_charts(found: Collection) -> list[TradeChart]:
    """One per batch size. Quality is top-1 where most of what was timed was evaluated, else the agreement."""
    timed = {entry: speeds_of(found, entry) for entry in found.entries if lowered(entry).get("target") != "tensorrt"}
    top1 = {e: result.top1 for e in timed if timed[e] and (result := best_eval(found, e)) and not result.failures}
    agreement = {e: min(shares) for e in timed if timed[e] and (
        shares := [c.agreement for c in found.current(e, found.records.checks) if c.agreement is not None])}
    metric, quality = ("top1", top1) if len(top1) >= len(agreement) else ("agreement", agreement)
    charts = []
    for batch in sorted({speed.batch for speeds in timed.values() for speed in speeds}):
        here = [(entry, speed) for entry, speeds in timed.items() for speed in speeds if speed.batch == batch]
        shown = [(entry, speed) for entry, speed in here if entry in quality]
        if len(shown) >= 2:
            missing = tuple(entry for entry, _ in here if entry not in quality)
            charts.append(_trade_chart(batch, METRICS[metric], [(e, s, quality[e]) for e, s in shown], missing))
    return charts


def _trade_chart(batch: int, metric: str, shown: Sequence[tuple[Entry, Speed, float]],
                 missing: tuple[Entry, ...]) -> TradeChart:
    x = axis([speed.images_per_sec for _, speed, _ in shown], count=4)
    y = percents([share for _, _, share in shown], count=4)
    points = label_points([(x.at(s.images_per_sec), y.at(100 * share)) for _, s, share in shown])
    best = pareto_front([(-s.images_per_sec, share) for _, s, share in shown])[::-1]  # by rising speed
    corners = [(points[i].x, points[i].y) for i in reversed(best)]                      # the fastest first
    front = []
    for (right, low), (left, high) in zip(corners, corners[1:]):           # as steps: nothing is known in between
        front += [Line(right, low, left, low), Line(left, low, left, high)]
    trades = [Trade(entry, point, percent(share), speed, figure(speed.images_per_sec),
                    "–" if speed.speedup is None else f"{speed.speedup:.2f}×", i in best)  # noqa: RUF001
              for i, ((entry, speed, share), point) in enumerate(zip(shown, points))]
    ranked = sorted(trades, key=lambda t: (-t.speed.images_per_sec, t.entry.letter))
    return TradeChart(f"batch {batch}", metric, x, y, tuple(ranked), tuple(front), missing)


def latency_charts(found: Collection) -> list[LatencyChart]:
    """One per batch size, stand-ins for a dense baseline included."""
    rows: dict[int, list[tuple[str, str, Speed]]] = {}
    for entry in found.entries:
        for speed in speeds_of(found, entry):
            rows.setdefault(speed.batch, []).append((entry.key, entry.letter, speed))
    for speed in found.records.speeds:
        if speed.stand_in:
            rows.setdefault(speed.batch, []).append((f"{speed.artifact}, dense, {speed.source.file}", "", speed))
    return [_latency_chart(batch, sorted(rows[batch], key=lambda row: (row[2].p50, row[0]))) for batch in sorted(rows)]


def _latency_chart(batch: int, rows: Sequence[tuple[str, str, Speed]]) -> LatencyChart:
    highs = [high for _, _, s in rows for _, high in s.intervals.values() if high is not None]
    lows = [low for _, _, s in rows for low, _ in s.intervals.values() if low is not None]
    x = spans([*lows, *highs, *(q for _, _, s in rows for q in (s.p50, s.p99))])
    ranges = []
    for name, letter, s in rows:
        known = tuple((x.at(low), x.at(high)) for low, high in s.intervals.values()
                      if low is not None and high is not None)
        ranges.append(Range(name, letter, s, x.at(s.p50), x.at(s.p90), x.at(s.p99), known,
                            (milliseconds(s.p50), milliseconds(s.p90), milliseconds(s.p99))))
    return LatencyChart(f"batch {batch}", x, tuple(ranges))


def milliseconds(value: float) -> str:
    """Three digits, never a power of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def family(found: Collection) -> tuple[Branch, ...]:
    """Checkpoints, what was made of them, and what of that. A parent that is not here stands as a file of its own,
    with the reason."""
    children: dict[str, list[Entry]] = {}
    roots, lost = [], dict[tuple[str, str], list[Entry]]()
    for entry in found.entries:
        parent, origin = parent_of(found, entry), origin_of(entry)
        if parent:
            children.setdefault(parent.key, []).append(entry)
        elif origin.get("sha256"):
            name = origin.get("file", "unnamed").replace("\\", "/").split("/")[-1]
            lost.setdefault((name, origin["sha256"]), []).append(entry)
        else:
            roots.append(entry)
    seen: set[str] = set()

    def branch(entry: Entry) -> Branch:
        seen.add(entry.key)
        made = [branch(child) for child in children.get(entry.key, []) if child.key not in seen]
        return Branch(entry.key, short(entry.about.sha256), entry, "", tuple(made))

    tree = [branch(entry) for entry in roots]
    for (name, digest), made in lost.items():
        tree.append(Branch(name, short(digest), None, _why_lost(found, name), tuple(map(branch, made))))
    circle = [entry for entry in found.entries if entry.key not in seen]   # only in sidecars changed by hand
    return (*tree, *(branch(entry) for entry in circle if entry.key not in seen))


def _why_lost(found: Collection, name: str) -> str:
    same = next((e for e in found.entries if e.name == name), None)
    if same is None:
        return "not in this folder"
    return f"changed since: {same.key} here has sha256 {short(same.about.sha256)}"


def layer_maps(found: Collection) -> list[tuple[Entry, LayerMap]]:
    """Of every artifact whose products are known."""
    maps = ((entry, layer_map(entry.products, entry.facts)) for entry in found.entries)
    return [(entry, known) for entry, known in maps if known]


def costs(found: Collection) -> list[Cost]:
    """One chart per schedule and form of the graph, of models that drop patches."""
    groups: dict[Any, list[Entry]] = {}
    for entry in found.entries:
        if entry.facts and not entry.facts.dense:
            groups.setdefault((entry.facts.model, entry.facts.prune, entry.facts.forms), []).append(entry)
    result = []
    for key, entries in groups.items():
        chart = mac_chart(*key)
        result.append(Cost(tuple(entries), chart, f"{chart.pruned / chart.dense:.1%}"))
    return result


def environments(found: Collection) -> list[tuple[str, dict[str, str], dict[str, str]]]:
    """Every machine with its versions once: the reports that tell of it, and what they tell."""
    groups: dict[str, list[Environment]] = {}
    for told in found.records.environments:
        groups.setdefault(repr((sorted(told.machine.items()), sorted(told.versions.items()))), []).append(told)
    return [(", ".join(dict.fromkeys(e.source.file for e in same)), dict(same[0].machine), dict(same[0].versions))
            for same in groups.values()]

