"""Is an artifact good to ship? Four verdicts on each, none of them green without a measurement."""
from __future__ import annotations

import collections
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import QUANTIZED
from ..engine.sidecar import BY_GRAPH
from ..graph import on_score_path
from .collect import Collection, Entry
from .records import Check, Eval, Speed

PASS, WARN, FAIL, OPEN, INFO = "pass", "warn", "fail", "open", "info"
SIGNS = {PASS: "✓", WARN: "!", FAIL: "✗", OPEN: "?", INFO: "–"}  # noqa: RUF001  a dash, on purpose
NOISE = "noise"                             # as what is compared without images says
FASTER = 1.02                               # two medians within 2 % of one another are taken for the same


@dataclass(frozen=True)
class Verdict:
    """`state` is one of SIGNS; `lines` are the figures behind the `headline`, `source` the file that they are from,
    `command` what measures them where nothing did."""

    name: str
    state: str
    headline: str
    lines: tuple[str, ...] = ()
    source: str = ""
    command: str = ""

    @property
    def sign(self) -> str:
        return SIGNS[self.state]

    @property
    def meaning(self) -> str:
        """The sign in a word, for those who do not see it."""
        return {PASS: "good", WARN: "doubtful", FAIL: "bad", OPEN: "not known", INFO: "no verdict"}[self.state]


@dataclass(frozen=True)
class Judgement:
    """The verdicts on one artifact, and what they come to."""

    entry: Entry
    verdicts: tuple[Verdict, ...]

    @property
    def state(self) -> str:
        """The worst of the verdicts; INFO for a checkpoint, which is a source and not shipped."""
        states = {verdict.state for verdict in self.verdicts}
        worst = next(state for state in (FAIL, OPEN, WARN, PASS, INFO) if state in states)
        return INFO if self.entry.about.kind == "checkpoint" and worst != FAIL else worst

    @property
    def headline(self) -> str:
        if self.state == INFO:
            return "source" if self.entry.about.kind == "checkpoint" else "nothing to judge"
        return {FAIL: "do not ship", OPEN: "not known yet", WARN: "look closer", PASS: "good to ship"}[self.state]


def judge(found: Collection, max_drop: float) -> tuple[Judgement, ...]:
    """The verdicts on every artifact; top-1 may fall by `max_drop` percentage points."""
    return tuple(Judgement(entry, (_parity(found, entry), _accuracy(found, entry, max_drop), precision_truth(entry),
                                   _speed(found, entry))) for entry in found.entries)


def lowered(entry: Entry) -> Mapping[str, Any]:
    """How its precision was lowered; empty for float32, and for files of others."""
    return (entry.facts.lowered if entry.facts else None) or {}


def data_of(entry: Entry) -> str | None:
    """What its model can be judged on without being told: the demo's scenes."""
    facts = entry.facts
    if facts is None:
        return None
    trained_on = (facts.training or {}).get("data")
    return "digits" if trained_on == "digits" or facts.class_names == tuple("0123456789") else None


def best_eval(found: Collection, entry: Entry) -> Eval | None:
    """The one on the most images."""
    return max(found.current(entry, found.records.evals), key=lambda e: e.images, default=None)


def speeds_of(found: Collection, entry: Entry) -> list[Speed]:
    """One timing per batch size, that with the most runs, by batch size."""
    chosen: dict[int, Speed] = {}
    for speed in found.current(entry, found.records.speeds):
        if speed.batch not in chosen or speed.runs > chosen[speed.batch].runs:
            chosen[speed.batch] = speed
    return [chosen[batch] for batch in sorted(chosen)]


def origin_of(entry: Entry) -> dict[str, str]:
    """The `file` and `sha256` that it says it was made of; empty where it does not say."""
    source = entry.about.engine.source if entry.about.engine else (entry.facts.parent if entry.facts else None)
    return {name: str(source[name]) for name in ("file", "sha256") if source and source.get(name)}


def parent_of(found: Collection, entry: Entry) -> Entry | None:
    """The artifact in the folder that it was made of."""
    digest = origin_of(entry).get("sha256")
    return next((e for e in found.entries if e.about.sha256 == digest and e is not entry), None)


def ancestors(found: Collection, entry: Entry) -> list[Entry]:
    """What it was made of, the nearest first; a sidecar that was changed by hand may lead round in a circle."""
    line = [entry]
    while (parent := parent_of(found, line[-1])) and parent not in line:
        line.append(parent)
    return line[1:]


def _missing(name: str, found: Collection, entry: Entry, stale: bool, verb: str, command: str) -> Verdict:
    words = f"{verb} on another file" if stale else f"not {verb}"
    why = (f"{entry.name} has changed since the report was written.",) if stale else ()
    return Verdict(name, OPEN, words, why, command=command)


def _parity(found: Collection, entry: Entry) -> Verdict:
    checks = [check for check in found.current(entry, found.records.checks)  # agreeing with itself says nothing
              if check.source.hashes(check.reference) != {entry.about.sha256}]
    gate = lowered(entry).get("gate")
    if checks:
        failed = [c for c in checks if c.failures]
        shown = failed[0] if failed else max(checks, key=lambda c: c.images)
        if failed:
            return Verdict("Parity", FAIL, "differs", (*shown.failures[:2], *_figures(shown)), shown.source.file)
        words = "same" if entry.precision == "float32" else "within tolerance"
        if shown.data == NOISE:
            return Verdict("Parity", WARN, f"{words}, on noise", (*_figures(shown), "Real images prove more."),
                           shown.source.file, _check_command(found, entry))
        return Verdict("Parity", PASS, words, _figures(shown), shown.source.file)
    if gate == "rejected":
        return Verdict("Parity", FAIL, "rejected at export", ("It differs too much from float32.",), entry.key)
    if entry.about.kind == "checkpoint":
        return Verdict("Parity", INFO, "the reference", ("Exports are compared with it.",))
    stale = bool(found.stale(entry, found.records.checks))
    verdict = _missing("Parity", found, entry, stale, "checked", _check_command(found, entry))
    if gate == "passed":
        return Verdict("Parity", OPEN, verdict.headline, ("Its gate passed at export; those figures are not here.",),
                       entry.key, verdict.command)
    return verdict


def _figures(check: Check) -> tuple[str, ...]:
    """The figures of a comparison, in short sentences."""
    lines = [f"against {check.reference}"]
    if check.agreement is not None:
        lines.append(f"{percent(check.agreement)} same class, {_images(check)}")
    if check.relative_error is not None:
        lines.append(f"logits off by {small(check.relative_error)}")
    if check.overlap is not None:
        lines.append(f"{percent(check.overlap)} of kept patches alike")
    return tuple(lines)


def _check_command(found: Collection, entry: Entry) -> str:
    parent = parent_of(found, entry)
    return _typed("check", parent.key if parent else "CHECKPOINT", entry.key, "--data", data_of(entry) or "IMAGES",
                  "--json", f"{entry.key}.check.json")


def _accuracy(found: Collection, entry: Entry, max_drop: float) -> Verdict:
    mine = best_eval(found, entry)
    if mine is None:
        command = _typed("eval", entry.key, "--data", data_of(entry) or "IMAGES", "--json", f"{entry.key}.eval.json")
        return _missing("Accuracy", found, entry, bool(found.stale(entry, found.records.evals)), "evaluated", command)
    of = _images(mine)
    headline = f"{percent(mine.top1)} top-1"
    if mine.failures:
        return Verdict("Accuracy", FAIL, headline, (mine.failures[0], of), mine.source.file)
    lines, worst = [of], 0.0
    others = _references(found, entry, mine)
    for words, other in others:
        drop = 100 * (other.top1 - mine.top1)
        worst = max(worst, drop)
        lines.append(f"{-drop:+.2f} points against {words}" if abs(drop) >= 0.005 else f"as {words}")
    if not others:
        words = "the dense model" if _is_plain(entry) else "nothing to compare with"
        return Verdict("Accuracy", INFO, headline, (*lines, words), mine.source.file)
    bad = worst > max_drop + 1e-9
    lines += [f"At most {max_drop:g} points may be lost."] if bad else []
    coarse = not bad and 0 < mine.images * max_drop < 100                  # one image weighs more than the bound
    lines += [f"To tell {max_drop:g} points, evaluate {math.ceil(100 / max_drop):,} images or more."] if coarse else []
    return Verdict("Accuracy", FAIL if bad else WARN if coarse else PASS, headline, tuple(lines), mine.source.file)


def _references(found: Collection, entry: Entry, mine: Eval) -> list[tuple[str, Eval]]:
    """The checkpoint that it stems from, and the dense model, as far as they saw the same images."""
    def seen(words: str, others: list[Entry]) -> list[tuple[str, Eval]]:
        results = (best_eval(found, other) for other in others)
        return [(words, e) for e in results if e and (e.data, e.images) == (mine.data, mine.images)][:1]

    dense = [e for e in found.entries if entry.facts and e.facts and e.facts.model.name == entry.facts.model.name
             and _is_plain(e)] if not _is_plain(entry) else []
    return seen("its checkpoint", ancestors(found, entry)[-1:]) + seen("the dense model", dense)


def _is_plain(entry: Entry) -> bool:
    """True for the dense float32 model, of which nothing was taken away."""
    return entry.facts is not None and entry.facts.dense and entry.facts.precision == "float32"


def precision_truth(entry: Entry) -> Verdict:
    """What its products really compute in, against what it claims."""
    name, facts = "Precision", entry.facts
    if facts is None and "described by" in entry.about.details:            # an engine without its own sidecar
        return Verdict(name, OPEN, "nothing known", (f"described by {entry.about.details['described by']}",))
    if facts is None:
        return Verdict(name, INFO, "no claim", ("It was not written by dyvit.",))
    if entry.about.kind == "checkpoint":
        return Verdict(name, INFO, f"{facts.precision} weights", ("The runtime decides what they compute in.",))
    if not entry.products:
        return Verdict(name, OPEN, f"{facts.precision}, unconfirmed", (entry.told,) if entry.told else ())
    counts = collections.Counter(entry.products.values()).most_common()
    lines = ("products: " + ", ".join(f"{count} {kind}" for kind, count in counts), entry.told)
    wrong = wider(entry)
    if wrong:
        return Verdict(name, FAIL, f"not {facts.precision} throughout", (
            f"{len(wrong)} products are not, {next(iter(wrong))} is {next(iter(wrong.values()))}", *lines), entry.key)
    if entry.told == BY_GRAPH or facts.precision not in entry.products.values():
        return Verdict(name, OPEN, f"{facts.precision}, unconfirmed", lines, entry.key)
    return Verdict(name, PASS, f"{facts.precision}, as claimed", lines, entry.key)


def wider(entry: Entry) -> Mapping[str, str]:
    """Products that should be in the claimed precision and are not: node to what it is in.

    Scores stay float32 by design, quantization leaves predictors and the products inside attention, and `kept` are
    those that the export raised and said so.
    """
    facts = entry.facts
    if facts is None:
        return {}
    kept = set(lowered(entry).get("kept") or ())
    wrong = {}
    for node, found in entry.products.items():
        module = node.split("/")[0]
        exempt = ((facts.precision in QUANTIZED and (module.startswith("score_predictor.") or module.endswith(".attn")))
                  or (on_score_path(node) and facts.precision != "float32") or {node, module} & kept)
        if found != facts.precision and not exempt:
            wrong[node] = found
    return wrong


def _speed(found: Collection, entry: Entry) -> Verdict:
    name, speeds = "Speed", speeds_of(found, entry)
    if not speeds:
        command = _typed("bench", entry.key, "--json", f"{entry.key}.bench.json")
        return _missing(name, found, entry, bool(found.stale(entry, found.records.speeds)), "measured", command)
    source = ", ".join(dict.fromkeys(s.source.file for s in speeds))
    lines = [f"batch {s.batch}: {figure(s.images_per_sec)} images/s" + ("" if s.speedup is None else
             f", {'' if s.stable else '~'}{s.speedup:.2f}×") for s in speeds]  # noqa: RUF001  a times sign
    ratios = [s.speedup for s in speeds if s.speedup is not None]
    if not ratios:
        return Verdict(name, INFO, "the baseline", tuple(lines), source)
    ceilings = sorted({f"{s.ceiling:.2f}×" for s in speeds if s.ceiling})  # noqa: RUF001
    pruned = entry.facts is not None and not entry.facts.dense and entry.facts.precision == "float32"
    lines += [f"against {speeds[0].baseline}"] + ([f"fewer MACs promise {ceilings[0]}"] if pruned and ceilings else [])
    lines += ["~ did not settle"] if any(not s.stable for s in speeds) else []
    low, high = min(ratios), max(ratios)
    headline = f"{low:.2f}×" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f}–{high:.2f}×"  # noqa: RUF001
    if entry.about.kind == "checkpoint" or lowered(entry).get("target") == "tensorrt":
        return Verdict(name, INFO, headline, tuple(lines), source)
    state = PASS if low >= FASTER else FAIL if high < 1 / FASTER else WARN
    words = {PASS: "", WARN: "not faster at every batch, " if high >= FASTER else "no faster, ", FAIL: "slower, "}
    unsure = [str(s.batch) for s in speeds if s.speedup is not None and not _is_told_apart(found, s)]
    if unsure and state != WARN:
        state, words = WARN, {WARN: "not sure, "}
        lines.append(f"batch {', '.join(unsure)}: the medians cannot be told apart; measure longer")
    if _is_plain(entry) and low >= 1 / FASTER and high < FASTER:           # as fast as the dense model, which it is
        return Verdict(name, INFO, headline, tuple(lines), source)
    return Verdict(name, state, words[state] + headline, tuple(lines), source)


def _is_told_apart(found: Collection, speed: Speed) -> bool:
    """True when the 95 % intervals of its median and of its baseline's do not touch. Where there are none: when it
    settled, or nine of ten calls were faster than the baseline's median."""
    bases = [s for s in found.records.speeds if (s.source.file, s.batch) == (speed.source.file, speed.batch)
             and (s.artifact == speed.baseline or s.stand_in)]
    mine, other = (s.intervals.get("p50", (None, None)) for s in (speed, bases[0] if len(bases) == 1 else speed))
    if len(bases) != 1 or None in (*mine, *other):
        return speed.stable or speed.p90 < speed.p50 * (speed.speedup or 0)
    (low, high), (base_low, base_high) = mine, other
    return bool(high < base_low or low > base_high)                        # type: ignore[operator]  # None is gone


def _typed(*words: str) -> str:
    return shlex.join(["dyvit", *words])


def percent(share: float) -> str:
    return "100 %" if share == 1 else f"{100 * share:.2f} %"


def small(value: float) -> str:
    """A relative error: per cent, or a power of ten below a hundredth of one."""
    return f"{100 * value:.2g} %" if value >= 1e-4 else f"{value:.0e}"


def figure(value: float) -> str:
    """Three digits at least, thousands apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _images(measured: Check | Eval) -> str:
    """On what, without the folders that it lies in on some machine."""
    data = measured.data.rstrip("/").rsplit("/", 1)[-1]
    return f"{measured.images:,} images of {data}" if measured.images else f"images of {data}"


def short(digest: str) -> str:
    return digest[:12]

