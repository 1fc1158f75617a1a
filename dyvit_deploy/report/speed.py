"""The verdict on speed. Only timings of one run, against one baseline and in equal batches are compared."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from .collect import Collection, PageArtifact
from .formatting import format_rate, format_ratio
from .lineage import is_plain, lowered
from .records import Speed
from .status import FAIL, INFO, PASS, WARN, Verdict, missing, typed, worst

NAME = "Speed"
UNSURE = "not sure, "
# Seconds per batch size in the proposed command.
LONG = "60"
# Medians within 2 % of each other count as equal.
FASTER = 1.02


class Group(NamedTuple):
    """Timings with the same run and baseline are comparable; see `records.Speed`."""

    run: str
    baseline: str


def groups_of(collection: Collection, entry: PageArtifact) -> dict[Group, list[Speed]]:
    """The timings of each group by rising batch size; for each batch size the one with the most runs."""
    groups: dict[Group, dict[int, Speed]] = {}
    for speed in collection.current(entry, collection.records.speeds):
        chosen = groups.setdefault(Group(speed.run, speed.baseline), {})
        if speed.batch not in chosen or speed.runs > chosen[speed.batch].runs:
            chosen[speed.batch] = speed
    return {group: [chosen[batch] for batch in sorted(chosen)] for group, chosen in sorted(groups.items())}


def judge_speed(collection: Collection, entry: PageArtifact) -> Verdict:
    """The worst of the verdicts against each baseline; if there are several, the lines list all of them. An unsure
    verdict is ignored if another run against the same baseline is sure."""
    groups = groups_of(collection, entry)
    if not groups:
        command = typed("bench", entry.key, "--json", f"{entry.key}.bench.json")
        return missing(NAME, collection, entry, collection.records.speeds, "measured", command)
    verdicts = {group: _judge(collection, entry, speeds) for group, speeds in groups.items()}
    sure = {group.baseline for group, v in verdicts.items() if not v.headline.startswith(UNSURE)}
    verdicts = {group: v for group, v in verdicts.items()
                if group.baseline not in sure or not v.headline.startswith(UNSURE)}
    state = worst(v.state for v in verdicts.values())
    shown = next(v for v in verdicts.values() if v.state == state)
    if len(verdicts) == 1:
        return shown
    lines = [line for group, v in verdicts.items() for line in (f"{group.run}: {v.headline}", *v.lines)]
    sources = dict.fromkeys(v.source for v in verdicts.values())
    return Verdict(NAME, state, shown.headline, tuple(lines), ", ".join(sources), shown.command)


def _judge(collection: Collection, entry: PageArtifact, speeds: Sequence[Speed]) -> Verdict:
    """The verdict on the timings of one group."""
    source = speeds[0].source.file
    lines = [f"batch {s.batch}: {format_rate(s.images_per_sec)} images/s" + ("" if s.speedup is None else
             f", {'' if s.stable else '~'}{format_ratio(s.speedup)}") for s in speeds]
    ratios = [s.speedup for s in speeds if s.speedup is not None]
    if not ratios:
        return Verdict(NAME, INFO, "the baseline", tuple(lines), source)
    ceilings = sorted({format_ratio(s.ceiling) for s in speeds if s.ceiling})
    pruned = entry.facts is not None and not entry.facts.dense and entry.facts.precision == "float32"
    lines += [f"against {speeds[0].baseline}"] + ([f"fewer MACs promise {ceilings[0]}"] if pruned and ceilings else [])
    lines += ["~ did not settle"] if any(not s.stable for s in speeds) else []
    low, high = min(ratios), max(ratios)
    same = format_ratio(low) == format_ratio(high)
    headline = format_ratio(low) if same else f"{low:.2f}–{format_ratio(high)}"  # noqa: RUF001  a dash, on purpose
    if entry.about.kind == "checkpoint" or lowered(entry).get("target") == "tensorrt":
        return Verdict(NAME, INFO, headline, tuple(lines), source)
    # A dense model is as fast as the dense baseline.
    if is_plain(entry) and low >= 1 / FASTER and high < FASTER:
        return Verdict(NAME, INFO, headline, tuple(lines), source)
    state = PASS if low >= FASTER else FAIL if high < 1 / FASTER else WARN
    prefixes = {PASS: "", WARN: "not faster at every batch, " if high >= FASTER else "no faster, ", FAIL: "slower, "}
    doubts = {s.batch: doubt for s in speeds if s.speedup is not None and (doubt := _doubt(collection, s))}
    if doubts and state != WARN:
        state, prefixes = WARN, {WARN: UNSURE}
        for doubt in dict.fromkeys(doubts.values()):
            batches = ", ".join(str(batch) for batch, same_doubt in doubts.items() if same_doubt == doubt)
            lines.append(f"batch {batches}: {doubt}; measure longer")
    command = _bench_command(collection, entry, speeds) if state == WARN else ""
    return Verdict(NAME, state, prefixes[state] + headline, tuple(lines), source, command)


def _bench_command(collection: Collection, entry: PageArtifact, speeds: Sequence[Speed]) -> str:
    """The command that repeats the timings for longer, with intervals."""
    folder = PurePosixPath(speeds[0].source.file).parent
    bases = sorted((e for e in collection.entries if e.name == speeds[0].baseline),
                   key=lambda e: PurePosixPath(e.key).parent != folder)
    return typed("bench", entry.key, *(["--baseline", bases[0].key] if bases else []), "--batch",
                 ",".join(str(speed.batch) for speed in speeds), "--seconds", LONG, "--json", f"{entry.key}.bench.json")


def _doubt(collection: Collection, speed: Speed) -> str:
    """Why the speed-up is not sure; empty if it is.

    It is unsure if the 95 % intervals of its median and of the baseline's touch or, where these are not known, if one
    of the two did not settle.
    """
    # A rewritten dense model is itself compared with the plain one.
    bases = [s for s in collection.records.speeds
             if (s.artifact == speed.baseline or (s.stand_in and s.speedup is None))
             and (s.run, s.baseline, s.batch) == (speed.run, speed.baseline, speed.batch)]
    base = bases[0] if len(bases) == 1 else speed
    mine, other = (s.intervals.get("p50", (None, None)) for s in (speed, base))
    if base is speed or None in (*mine, *other):
        settled = speed.stable and base.stable
        return "" if settled else "the run did not settle" if not speed.stable else "the baseline did not settle"
    (low, high), (base_low, base_high) = mine, other
    apart = high < base_low or low > base_high  # type: ignore[operator]  # not None, see above
    return "" if apart else "no difference measured, the intervals of the medians overlap"
