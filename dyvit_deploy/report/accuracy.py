"""The verdict on accuracy: the loss against the checkpoint and the dense model, on the same images."""
from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import NamedTuple

from ..evaluation.answers import estimated_loss
from ..statistics.counts import exact
from ..statistics.estimates import Estimate, PairedLoss
from .collect import Collection, PageArtifact
from .formatting import format_images, format_percent
from .lineage import ancestors, data_of, is_plain, of_one_checkpoint, source_of
from .records import Eval
from .status import FAIL, INFO, OPEN, PASS, WARN, Verdict, missing, typed

NAME = "Accuracy"
DENSE = "the dense model"


class Loss(NamedTuple):
    """Two accuracies on the same images, `mine` and that of the `reference`, which `label` names."""

    label: str
    mine: Eval
    reference: Eval

    @property
    def drop(self) -> float:
        """Percentage points of top-1 by which `mine` is below the `reference`."""
        return 100 * (self.reference.top1 - self.mine.top1)

    @property
    def estimate(self) -> Estimate | None:
        """The drop as a share with its 95 % interval; None if the number of images is unknown."""
        return estimated_loss(self.mine.images, (self.reference.top1, self.reference.answers),
                              (self.mine.top1, self.mine.answers)) if self.mine.images else None

    @property
    def line(self) -> str:
        return f"{-self.drop:+.2f} points against {self.label}" if abs(self.drop) >= 0.005 else f"as {self.label}"

    def sureness(self) -> str:
        """The interval of the change in points, and whether the answers were compared image by image."""
        if (estimate := self.estimate) is None:
            return "Nobody knows on how many images."
        low, high = (100 * end for end in estimate.interval)
        how = "image by image" if isinstance(estimate, PairedLoss) else "not image by image"
        return f"95 % interval {-high:+.2g} to {-low:+.2g} points, {how}"

    def within(self, bound: Fraction) -> bool | None:
        """Whether the drop is at most `bound`, a share; None if these images do not decide that."""
        return self.estimate.within(bound) if self.estimate else None


def judge_accuracy(collection: Collection, entry: PageArtifact, max_drop: float) -> Verdict:
    mine = max(collection.current(entry, collection.records.evals), key=_priority, default=None)
    if mine is None:
        command = typed("eval", entry.key, "--data", data_of(entry) or "IMAGES", "--json", f"{entry.key}.eval.json")
        return missing(NAME, collection, entry, collection.records.evals, "evaluated", command)
    if mine.failures:
        return Verdict(NAME, FAIL, f"{format_percent(mine.top1)} top-1", (mine.failures[0], _images(mine)),
                       mine.source.file)
    losses = _losses(collection, entry)
    if not losses:
        return _incomparable(collection, entry, mine)
    mine = losses[0].mine
    lines = [_images(mine)]
    for loss in losses:
        lines.append(loss.line + (f", on {_images(loss.mine)}" if loss.mine.seen != mine.seen else ""))
        lines.append(loss.sureness())
    command = ""
    if not is_plain(entry) and all(loss.label != DENSE for loss in losses):
        lines.append(f"not compared with {DENSE}")
        dense = sorted(_dense(collection, entry), key=lambda e: not of_one_checkpoint(collection, entry, e))
        command = _command(mine, dense[0].key) if dense else ""
    state, bound = PASS, exact(max_drop) / 100
    if any(loss.within(bound) is False for loss in losses):
        state = FAIL
        lines.append(f"At most {max_drop:g} points may be lost.")
    elif unsure := [loss for loss in losses if loss.within(bound) is None]:
        state = WARN
        lines += dict.fromkeys(f"At most {max_drop:g} points may be lost, {loss.estimate.doubt(bound)}."
                               for loss in unsure if loss.estimate)
        command = command or _more_images(collection, unsure[0], bound)
    return Verdict(NAME, state, f"{format_percent(mine.top1)} top-1", tuple(lines), mine.source.file, command)


def _priority(result: Eval) -> tuple[bool, int]:
    """Failures first, then the result on the most images."""
    return bool(result.failures), result.images


def _images(result: Eval) -> str:
    return format_images(result.images, result.data)


def _more_images(collection: Collection, loss: Loss, bound: Fraction) -> str:
    """The command that makes the interval of `loss` narrower: an evaluation that records the answers of an artifact
    without them, else one of the artifact on as many images as are needed; empty if no number would do."""
    estimate, evaluated, images = loss.estimate, loss.mine, loss.mine.images
    if isinstance(estimate, PairedLoss):
        needed = estimate.images_needed(bound)
        if needed is None:
            return ""
        images = needed
    elif loss.reference.answers is None:
        evaluated = loss.reference
    key = next(e.key for e in collection.entries if collection.current(e, (evaluated,)))
    return _command(dataclasses.replace(loss.mine, images=images), key)


def _losses(collection: Collection, entry: PageArtifact) -> list[Loss]:
    """The losses against the artifact's checkpoint and against the dense model, the one on the most images first.

    Each is on the most images that both were evaluated on. Among several dense models, one of the same checkpoint is
    preferred, then the most accurate, then one that can be compared image by image.
    """
    own = collection.current(entry, collection.records.evals)
    losses = []
    for label, references in (("its checkpoint", ancestors(collection, entry)[-1:]),
                              (DENSE, _dense(collection, entry))):
        pairs = [(of_one_checkpoint(collection, entry, reference), mine.images, theirs.top1,
                  isinstance((loss := Loss(label, mine, theirs)).estimate, PairedLoss), loss)
                 for mine in own for reference in references
                 for theirs in collection.current(reference, collection.records.evals)
                 if mine.seen == theirs.seen and not theirs.failures]
        losses += [max(pairs, key=lambda pair: pair[:4])[4]] if pairs else []
    return sorted(losses, key=lambda loss: -loss.mine.images)


def _dense(collection: Collection, entry: PageArtifact) -> list[PageArtifact]:
    """The dense float32 models of the same architecture; empty if the artifact is one itself."""
    return [] if is_plain(entry) else [e for e in collection.entries if e.facts and entry.facts and is_plain(e)
                                       and e.facts.model.name == entry.facts.model.name]


def _command(mine: Eval, key: str) -> str:
    """The command that evaluates the artifact `key` on the same images."""
    data = "digits" if mine.data.partition(":")[0] == "digits" else "IMAGES"
    split = mine.data.rpartition(":")[2]
    return typed("eval", key, "--data", data, *(["--split", split] if split in ("train", "val") else []),
                 *(["--images", str(mine.images)] if mine.images else []), "--json", f"{key}.eval.json")


def _incomparable(collection: Collection, entry: PageArtifact, mine: Eval) -> Verdict:
    """The verdict without a reference: open, except for artifacts that are references themselves."""
    headline = f"{format_percent(mine.top1)} top-1"
    if is_plain(entry) or entry.about.kind == "checkpoint":
        remark = DENSE if is_plain(entry) else "nothing to compare with"
        return Verdict(NAME, INFO, headline, (_images(mine), remark), mine.source.file)
    why = "Nothing to compare with: its checkpoint was not evaluated on the same images, under the same path."
    return Verdict(NAME, OPEN, headline, (_images(mine), why), mine.source.file,
                   _command(mine, source_of(collection, entry)))
