"""The verdict on accuracy: the loss against the checkpoint and the dense model, on the same images."""
from __future__ import annotations

import math
from typing import NamedTuple

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
    def half_width(self) -> float:
        """Half the width of the 95 % interval of the drop, in points. Two images, one of them right, are added, so that
        it is not 0 for a perfect result (Agresti, Caffo)."""
        shares = ((e.top1 * e.images + 1) / (e.images + 2) for e in (self.mine, self.reference))
        return 196 * math.sqrt(sum(p * (1 - p) / (self.mine.images + 2) for p in shares))

    @property
    def line(self) -> str:
        return f"{-self.drop:+.2f} points against {self.label}" if abs(self.drop) >= 0.005 else f"as {self.label}"


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
    images = min(loss.mine.images for loss in losses)
    lines = [_images(mine)]
    for loss in losses:
        lines.append(loss.line + (f", on {_images(loss.mine)}" if loss.mine.seen != mine.seen else ""))
    command = ""
    if not is_plain(entry) and all(loss.label != DENSE for loss in losses):
        lines.append(f"not compared with {DENSE}")
        dense = sorted(_dense(collection, entry), key=lambda e: not of_one_checkpoint(collection, entry, e))
        command = _command(mine, dense[0].key) if dense else ""
    if images:
        width = max(loss.half_width for loss in losses)
        lines.append(f"± {width:.2g} points with {_counted(images)}")
    state = PASS
    if max(loss.drop for loss in losses) > max_drop + 1e-9:
        state = FAIL
        lines.append(f"At most {max_drop:g} points may be lost.")
    elif doubt := _too_few(images, max_drop):
        state = WARN
        lines.append(doubt)
    return Verdict(NAME, state, f"{format_percent(mine.top1)} top-1", tuple(lines), mine.source.file, command)


def _priority(result: Eval) -> tuple[bool, int]:
    """Failures first, then the result on the most images."""
    return bool(result.failures), result.images


def _images(result: Eval) -> str:
    return format_images(result.images, result.data)


def _counted(images: int) -> str:
    return f"{images:,} image{'s' * (images != 1)}"


def _too_few(images: int, max_drop: float) -> str:
    """Why so few images cannot show a drop of `max_drop` points; empty if they can."""
    if not images:
        return "Nobody knows on how many images."
    if 100 / images <= max_drop:
        return ""
    doubt = f"One of {_counted(images)} weighs {100 / images:.3g} points, {max_drop:g} may be lost"
    return f"{doubt}: evaluate {math.ceil(100 / max_drop):,} images or more." if max_drop else f"{doubt}."


def _losses(collection: Collection, entry: PageArtifact) -> list[Loss]:
    """The losses against the artifact's checkpoint and against the dense model, the one on the most images first.

    Each is on the most images that both were evaluated on. Among several dense models, one of the same checkpoint is
    preferred, then the most accurate.
    """
    own = collection.current(entry, collection.records.evals)
    losses = []
    for label, references in (("its checkpoint", ancestors(collection, entry)[-1:]),
                              (DENSE, _dense(collection, entry))):
        pairs = [(of_one_checkpoint(collection, entry, reference), mine.images, theirs.top1, Loss(label, mine, theirs))
                 for mine in own for reference in references
                 for theirs in collection.current(reference, collection.records.evals)
                 if mine.seen == theirs.seen and not theirs.failures]
        losses += [max(pairs, key=lambda pair: pair[:3])[3]] if pairs else []
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
