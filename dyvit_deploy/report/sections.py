"""The parts of the page as data for its template: charts, tables, the family tree."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ..sweep.target import pareto_front
from .charts import Axis, Point, axis, label_points, percents, spans
from .collect import Collection, PageArtifact
from .formatting import format_images, format_ms, format_percent, format_rate, format_ratio, short_hash
from .layers import LayerMap, MacChart, layer_map, mac_chart
from .lineage import is_own_reference, lowered, origin_of, parent_of
from .records import Check, Environment, Eval, Speed
from .speed import Group, groups_of


class Line(NamedTuple):
    """A straight line of a chart, in percent from the left and from the top."""

    x1: float
    y1: float
    x2: float
    y2: float


class Trade(NamedTuple):
    """One artifact in a Pareto chart."""

    entry: PageArtifact
    point: Point
    quality: str
    speed: Speed
    images_per_sec: str
    speedup: str
    best: bool


class TradeChart(NamedTuple):
    """Quality against images/s at one batch size. `front` are the lines of the Pareto front, `metric` names the
    quality, `images` the images that it was measured on, and `missing` are timed artifacts without it."""

    title: str
    metric: str
    images: str
    x: Axis
    y: Axis
    trades: tuple[Trade, ...]
    front: tuple[Line, ...]
    missing: tuple[PageArtifact, ...]


class LatencyMarks(NamedTuple):
    """The marks of one timing: p50, p90, p99 and the ends of their 95 % intervals in percent along the axis, and p50,
    p90, p99 as text (`figures`)."""

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
    rows: tuple[LatencyMarks, ...]


class Branch(NamedTuple):
    """A file in the family tree. `entry` is None if it is not in the folder; `note` says why."""

    name: str
    digest: str
    entry: PageArtifact | None
    note: str
    children: tuple[Any, ...]


class Cost(NamedTuple):
    """The block costs of the artifacts that share a schedule and graph."""

    entries: tuple[PageArtifact, ...]
    chart: MacChart
    share: str


def trade_charts(found: Collection) -> list[TradeChart]:
    """One chart per batch size and group of comparable timings, if at least two artifacts have a quality that was
    measured on the same images."""
    timed: dict[tuple[int, Group], list[tuple[PageArtifact, Speed]]] = {}
    for entry in found.entries:
        for group, speeds in groups_of(found, entry).items() if lowered(entry).get("target") != "tensorrt" else ():
            for speed in speeds:
                timed.setdefault((speed.batch, group), []).append((entry, speed))
    charts = []
    for key, rows in sorted(timed.items()):
        metric, images, quality = _quality(found, [entry for entry, _ in rows])
        shown = [(entry, speed, quality[entry]) for entry, speed in rows if entry in quality]
        if len(shown) >= 2:
            missing = tuple(entry for entry, _ in rows if entry not in quality)
            charts.append((key, _trade_chart(metric, images, shown, missing)))
    return [chart._replace(title=title) for title, (_, chart) in zip(_titles([key for key, _ in charts]), charts)]


def _titles(keys: Sequence[tuple[int, Group]]) -> list[str]:
    """The batch size, and where needed the run and the baseline, so that titles differ."""
    titles = []
    for batch, group in keys:
        others = [other for size, other in keys if size == batch]
        run = f", {group.run}" if len({other.run for other in others}) > 1 else ""
        baseline = f", against {group.baseline}" if len({o.baseline for o in others if o.run == group.run}) > 1 else ""
        titles.append(f"batch {batch}{run}{baseline}")
    return titles


def _quality(found: Collection, entries: Sequence[PageArtifact]) -> tuple[str, str, dict[PageArtifact, float]]:
    """The metric that most of `entries` have on the same images, these images, and the value of each artifact. The
    metric is top-1 or, if more artifacts have it, the share of images with the class of the reference."""
    top1 = _on_same_images((e, result, result.top1) for e in entries
                           for result in found.current(e, found.records.evals) if not result.failures)
    agreement = _on_same_images((e, c, c.agreement) for e in entries
                                for c in found.current(e, found.records.checks)
                                if c.agreement is not None and is_own_reference(found, e, c))
    if len(top1[1]) >= len(agreement[1]):
        return "top-1", *top1
    return "same class as its reference", *agreement


def _on_same_images(
        results: Iterable[tuple[PageArtifact, Eval | Check, float]]) -> tuple[str, dict[PageArtifact, float]]:
    """The images that most artifacts saw, and for each artifact the lowest share on them."""
    known = list(results)
    counts = Counter(seen for _, seen in {(entry, result.seen) for entry, result, _ in known})
    data, images = max(counts, key=lambda seen: (counts[seen], seen[1], seen[0]), default=("", 0))
    values: dict[PageArtifact, float] = {}
    for entry, result, share in known:
        if result.seen == (data, images):
            values[entry] = min(share, values.get(entry, 1.0))
    return format_images(images, data), values


def _trade_chart(metric: str, images: str, shown: Sequence[tuple[PageArtifact, Speed, float]],
                 missing: tuple[PageArtifact, ...]) -> TradeChart:
    x = axis([speed.images_per_sec for _, speed, _ in shown], count=4)
    y = percents([share for _, _, share in shown], count=4)
    points = label_points([(x.at(s.images_per_sec), y.at(100 * share)) for _, s, share in shown])
    # By increasing speed.
    best = pareto_front([(-s.images_per_sec, share) for _, s, share in shown])[::-1]
    # The fastest first.
    corners = [(points[i].x, points[i].y) for i in reversed(best)]
    front = []
    # Steps, because nothing is known between two points.
    for (right, low), (left, high) in zip(corners, corners[1:]):
        front += [Line(right, low, left, low), Line(left, low, left, high)]
    # An en dash marks a missing value.
    trades = [Trade(entry, point, format_percent(share), speed, format_rate(speed.images_per_sec),
                    "–" if speed.speedup is None else format_ratio(speed.speedup), i in best)  # noqa: RUF001
              for i, ((entry, speed, share), point) in enumerate(zip(shown, points))]
    ranked = sorted(trades, key=lambda t: (-t.speed.images_per_sec, t.entry.letter))
    return TradeChart("", metric, images, x, y, tuple(ranked), tuple(front), missing)


def latency_charts(found: Collection) -> list[LatencyChart]:
    """One per batch size and group of comparable timings, stand-ins for a dense baseline included."""
    rows: dict[tuple[int, Group], list[tuple[str, str, Speed]]] = {}
    for entry in found.entries:
        for group, speeds in groups_of(found, entry).items():
            for speed in speeds:
                rows.setdefault((speed.batch, group), []).append((entry.key, entry.letter, speed))
    for speed in found.records.speeds:
        if speed.stand_in:
            key = speed.batch, Group(speed.run, speed.baseline)
            rows.setdefault(key, []).append((f"{speed.artifact}, dense, {speed.source.file}", "", speed))
    keys = sorted(rows)
    return [_latency_chart(title, sorted(rows[key], key=lambda row: (row[2].p50, row[0])))
            for title, key in zip(_titles(keys), keys)]


def _latency_chart(title: str, rows: Sequence[tuple[str, str, Speed]]) -> LatencyChart:
    highs = [high for _, _, s in rows for _, high in s.intervals.values() if high is not None]
    lows = [low for _, _, s in rows for low, _ in s.intervals.values() if low is not None]
    x = spans([*lows, *highs, *(q for _, _, s in rows for q in (s.p50, s.p99))])
    ranges = []
    for name, letter, s in rows:
        known = tuple((x.at(low), x.at(high)) for low, high in s.intervals.values()
                      if low is not None and high is not None)
        ranges.append(LatencyMarks(name, letter, s, x.at(s.p50), x.at(s.p90), x.at(s.p99), known,
                            (format_ms(s.p50), format_ms(s.p90), format_ms(s.p99))))
    return LatencyChart(title, x, tuple(ranges))


def family(found: Collection) -> tuple[Branch, ...]:
    """The checkpoints, the artifacts made from them, and the artifacts made from those. A parent that is not in the
    folder is a root, with the reason as its note."""
    children: dict[str, list[PageArtifact]] = {}
    roots, lost = [], dict[tuple[str, str], list[PageArtifact]]()
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

    def branch(entry: PageArtifact) -> Branch:
        seen.add(entry.key)
        made = [branch(child) for child in children.get(entry.key, []) if child.key not in seen]
        return Branch(entry.key, short_hash(entry.about.sha256), entry, "", tuple(made))

    tree = [branch(entry) for entry in roots]
    for (name, digest), made in lost.items():
        tree.append(Branch(name, short_hash(digest), None, _why_lost(found, name), tuple(map(branch, made))))
    # A circle is possible only in sidecars that were edited.
    circle = [entry for entry in found.entries if entry.key not in seen]
    return (*tree, *(branch(entry) for entry in circle if entry.key not in seen))


def _why_lost(found: Collection, name: str) -> str:
    same = next((e for e in found.entries if e.name == name), None)
    if same is None:
        return "not in this folder"
    return f"changed since: {same.key} here has sha256 {short_hash(same.about.sha256)}"


def layer_maps(found: Collection) -> list[tuple[PageArtifact, LayerMap]]:
    """The layer map of every artifact whose products are known."""
    maps = ((entry, layer_map(entry.products, entry.facts)) for entry in found.entries)
    return [(entry, known) for entry, known in maps if known]


def costs(found: Collection) -> list[Cost]:
    """One chart per schedule and form of the graph, of models that drop patches."""
    groups: dict[Any, list[PageArtifact]] = {}
    for entry in found.entries:
        if entry.facts and not entry.facts.dense:
            groups.setdefault((entry.facts.model, entry.facts.prune, entry.facts.forms), []).append(entry)
    result = []
    for key, entries in groups.items():
        chart = mac_chart(*key)
        result.append(Cost(tuple(entries), chart, f"{chart.pruned / chart.dense:.1%}"))
    return result


def environments(found: Collection) -> list[tuple[str, dict[str, str], dict[str, str]]]:
    """Each machine with its library versions, once: the reports that record it, the machine, the versions."""
    groups: dict[str, list[Environment]] = {}
    for environment in found.records.environments:
        key = repr((sorted(environment.machine.items()), sorted(environment.versions.items())))
        groups.setdefault(key, []).append(environment)
    return [(", ".join(dict.fromkeys(e.source.file for e in same)), dict(same[0].machine), dict(same[0].versions))
            for same in groups.values()]

