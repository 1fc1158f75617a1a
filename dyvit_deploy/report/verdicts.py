"""Judges whether an artifact is good to ship: four verdicts, none of them good without a measurement."""
from __future__ import annotations

import collections
from collections.abc import Mapping
from dataclasses import dataclass

from ..config import QUANTIZED
from ..engine.sidecar import BY_GRAPH
from ..graph.names import on_score_path
from ..statistics.counts import counted
from ..statistics.estimates import Proportion
from .accuracy import judge_accuracy
from .collect import IN_GRAPH, Collection, PageArtifact
from .formatting import format_error, format_images, format_percent
from .lineage import data_of, is_baseline, is_own_reference, lowered, parent_of, source_of
from .records import Check
from .speed import judge_speed
from .status import FAIL, INFO, OPEN, PASS, WARN, Verdict, missing, typed, worst

# The name of the data in a check without images.
NOISE = "noise"
# The row of an inspection with the fusions of the runtime.
IN_RUNTIME = "in ONNX Runtime"


@dataclass(frozen=True)
class Judgement:
    """The verdicts on one artifact, and their summary; `baseline` marks a dense one that pruned ones are compared with.
    """

    entry: PageArtifact
    verdicts: tuple[Verdict, ...]
    baseline: bool = False

    @property
    def state(self) -> str:
        """The worst of the verdicts; for checkpoints and baselines INFO, unless one is bad."""
        state = worst(verdict.state for verdict in self.verdicts)
        return INFO if (self.entry.about.kind == "checkpoint" or self.baseline) and state != FAIL else state

    @property
    def assumed(self) -> tuple[str, ...]:
        """What was assumed of its checkpoint, because no file says it."""
        return self.entry.facts.assumed if self.entry.facts else ()

    @property
    def headline(self) -> str:
        if self.state == INFO:
            source = self.entry.about.kind == "checkpoint"
            return "source" if source else "baseline" if self.baseline else "nothing to judge"
        return {FAIL: "do not ship", OPEN: "not known yet", WARN: "look closer", PASS: "good to ship"}[self.state]


def judge(collection: Collection, max_drop: float) -> tuple[Judgement, ...]:
    """The verdicts on every artifact; top-1 may fall by `max_drop` percentage points."""
    return tuple(
        Judgement(entry, (_parity(collection, entry), judge_accuracy(collection, entry, max_drop),
                          precision_truth(entry), judge_speed(collection, entry)), is_baseline(collection, entry))
        for entry in collection.entries)


def _parity(collection: Collection, entry: PageArtifact) -> Verdict:
    name = "Parity"
    # A comparison of an artifact with itself proves nothing.
    checks = [check for check in collection.current(entry, collection.records.checks)
              if check.source.hashes(check.reference) != {entry.about.sha256}]
    if failed := [c for c in checks if c.failures]:
        lines = (*failed[0].failures[:2], *_figures(entry, failed[0]))
        return Verdict(name, FAIL, "differs", lines, failed[0].source.file)
    independent = [check for check in checks if check.independent]
    if entry.about.kind == "checkpoint" and (independent or not checks):
        return _second_opinion(collection, entry, independent)
    if checks:
        return _agreement(collection, entry, checks)
    gate = entry.facts.gate if entry.facts else None
    if gate == "rejected":
        return Verdict(name, FAIL, "rejected at export", ("It differs too much from its checkpoint.",), entry.key)
    verdict = missing(name, collection, entry, collection.records.checks, "checked", _check_command(collection, entry))
    if gate == "passed":
        return Verdict(name, OPEN, verdict.headline, ("Its gate passed at export; those figures are not here.",),
                       entry.key, verdict.command)
    return verdict


def _second_opinion(collection: Collection, entry: PageArtifact, checks: list[Check]) -> Verdict:
    """The verdict on a checkpoint by the passed `checks` with what other code computes from it."""
    name, facts = "Parity", entry.facts
    if checks:
        real = [c for c in checks if c.data != NOISE]
        shown = max(real or checks, key=lambda c: c.images)
        lines = (f"compared with {shown.reference}: same", *_figures(entry, shown)[1:], shown.source.command)
        headline = "read alike elsewhere" + ("" if real else ", on noise")
        return Verdict(name, PASS if real else WARN, headline, lines, shown.source.file)
    if facts and facts.training:
        return Verdict(name, INFO, "the reference", ("Exports are compared with it; dyvit trained it.",))
    earlier = [c for c in collection.stale(entry, collection.records.checks) if c.independent]
    why = (f"{entry.name} has changed since {earlier[0].source.file} was written." if earlier else
           "never compared with another reader")
    other = f"timm:{facts.model.timm_name}" if facts and facts.model.timm_name and facts.dense else "FILE.npz"
    images = ("--data", "IMAGES") if other != "FILE.npz" else ()
    return Verdict(name, WARN, "one reader only", (why, "Exports are compared with it."), command=typed(
        "check", entry.key, "--against", other, *images, "--json", f"{entry.key}.against.json"))


def _agreement(collection: Collection, entry: PageArtifact, checks: list[Check]) -> Verdict:
    """The verdict if all checks passed: good only if one was on real images, against the artifact's own checkpoint.

    Another artifact would not do, because both could have what the exporter did wrong.
    """
    own = [c for c in checks if is_own_reference(collection, entry, c)]
    real = [c for c in own if c.data != NOISE]
    shown = max(real or own or checks, key=lambda c: c.images)
    headline = "same" if entry.precision == "float32" else "within tolerance"
    if real:
        return Verdict("Parity", PASS, headline, _figures(entry, shown), shown.source.file)
    if own:
        return Verdict("Parity", WARN, f"{headline}, on noise", (*_figures(entry, shown), "Real images prove more."),
                       shown.source.file, _check_command(collection, entry))
    why = f"agrees with {shown.reference}, which is not its checkpoint"
    return Verdict("Parity", WARN, "same as another", (why, *_figures(entry, shown)[1:]), shown.source.file,
                   _check_command(collection, entry))


def _figures(entry: PageArtifact, check: Check) -> tuple[str, ...]:
    """The figures of a comparison as lines of text."""
    lines = [f"against {check.reference}"]
    if check.agreement is not None:
        lines.append(f"{format_percent(check.agreement)} same class, {format_images(check.images, check.data)}")
        if check.images:
            low, high = Proportion(check.images, counted(check.agreement, check.images)).interval
            lines[-1] += f", 95 % interval {format_percent(low)} to {format_percent(high)}"
    if check.relative_error is not None:
        lines.append(f"logits off by {format_error(check.relative_error)}")
    if check.overlap is not None and not (entry.facts and entry.facts.dense):
        lines.append(f"{format_percent(check.overlap)} of kept patches alike")
    return tuple(lines)


def _check_command(collection: Collection, entry: PageArtifact) -> str:
    parent = parent_of(collection, entry)
    reference = parent.key if parent else source_of(collection, entry)
    return typed("check", reference, entry.key, "--data", data_of(entry) or "IMAGES", "--json",
                 f"{entry.key}.check.json")


def precision_truth(entry: PageArtifact) -> Verdict:
    """The verdict on the precision of its products, compared with the precision that its facts claim."""
    name, facts = "Precision", entry.facts
    # An engine without its own sidecar.
    if facts is None and "described by" in entry.about.details:
        return Verdict(name, OPEN, "nothing known", (f"described by {entry.about.details['described by']}",))
    if facts is None:
        return Verdict(name, INFO, "no claim", ("It was not written by dyvit.",))
    if entry.about.kind == "checkpoint":
        return Verdict(name, INFO, f"{facts.precision} weights", ("The runtime decides what they compute in.",))
    if not entry.products:
        source = entry.precision_source
        return Verdict(name, OPEN, f"{facts.precision}, unconfirmed", (source,) if source else ())
    counts = collections.Counter(entry.products.values()).most_common()
    lines = ("products: " + ", ".join(f"{count} {kind}" for kind, count in counts), entry.precision_source)
    wrong = wider(entry)
    if wrong:
        return Verdict(name, FAIL, f"not {facts.precision} throughout", (
            f"{len(wrong)} products are not, {next(iter(wrong))} is {next(iter(wrong.values()))}", *lines), entry.key)
    if entry.precision_source == BY_GRAPH or facts.precision not in entry.products.values():
        return Verdict(name, OPEN, f"{facts.precision}, unconfirmed", lines, entry.key)
    # A runtime may compute in another precision than the graph.
    if entry.precision_source == IN_GRAPH and facts.precision != "float32":
        fused = entry.rows.get(IN_RUNTIME, "").rpartition("; ")[2]
        remark = f"{IN_RUNTIME} here, {fused}" if fused else "dyvit inspect lists the graph as the runtime optimizes it"
        return Verdict(name, PASS, f"{facts.precision} in the graph", (*lines, remark), entry.key)
    return Verdict(name, PASS, f"{facts.precision}, as claimed", lines, entry.key)


def wider(entry: PageArtifact) -> Mapping[str, str]:
    """The products that should be in the claimed precision and are not: graph node to actual precision.

    Exceptions are scores, which stay float32 by design, predictors and the products inside attention, which
    quantization does not lower, and the `kept` layers, which the export left in a higher precision and recorded.
    """
    facts = entry.facts
    if facts is None:
        return {}
    kept = set(lowered(entry).get("kept") or ())
    wrong = {}
    for node, precision in entry.products.items():
        module = node.split("/")[0]
        exempt = ((facts.precision in QUANTIZED and (module.startswith("score_predictor.") or module.endswith(".attn")))
                  or (on_score_path(node) and facts.precision != "float32") or {node, module} & kept)
        if precision != facts.precision and not exempt:
            wrong[node] = precision
    return wrong
