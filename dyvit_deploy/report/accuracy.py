"""The verdict on accuracy: what an artifact loses against its checkpoint and the dense model, on the same images."""
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
    """Two accuracies on the same images; `drop` in percentage points, of `mine` below `other`."""

    words: str
    mine: Eval
    other: Eval

    @property
    def drop(self) -> float:
        return 100 * (self.other.top1 - self.mine.top1)

    @property
    def half_width(self) -> float:
        """Of the 95 % interval of the drop, in points; two more images, one right, keep it from 0 (Agresti, Caffo)."""
        shares = ((e.top1 * e.images + 1) / (e.images + 2) for e in (self.mine, self.other))
        return 196 * math.sqrt(sum(p * (1 - p) / (self.mine.images + 2) for p in shares))

    @property
    def line(self) -> str:
        return f"{-self.drop:+.2f} points against {self.words}" if abs(self.drop) >= 0.005 else f"as {self.words}"


def judge_accuracy(found: Collection, entry: PageArtifact, max_drop: float) -> Verdict:
    mine = max(found.current(entry, found.records.evals), key=_worth, default=None)
    if mine is None:
        command = typed("eval", entry.key, "--data", data_of(entry) or "IMAGES", "--json", f"{entry.key}.eval.json")
        return missing(NAME, found, entry, found.records.evals, "evaluated", command)
    if mine.failures:
        return Verdict(NAME, FAIL, f"{format_percent(mine.top1)} top-1", (mine.failures[0], _images(mine)),
                       mine.source.file)
    losses = _losses(found, entry)
    if not losses:
        return _incomparable(found, entry, mine)
    mine = losses[0].mine
    images = min(loss.mine.images for loss in losses)
    lines = [_images(mine)]
    for loss in losses:
        lines.append(loss.line + (f", on {_images(loss.mine)}" if loss.mine.seen != mine.seen else ""))
    command = ""
    if not is_plain(entry) and all(loss.words != DENSE for loss in losses):
        lines.append(f"not compared with {DENSE}")
        dense = sorted(_dense(found, entry), key=lambda e: not of_one_checkpoint(found, entry, e))
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


def _worth(result: Eval) -> tuple[bool, int]:
    """Failures first, then evaluations on more images."""
    return bool(result.failures), result.images


def _images(result: Eval) -> str:
    return format_images(result.images, result.data)


def _counted(images: int) -> str:
    return f"{images:,} image{'s' * (images != 1)}"


def _too_few(images: int, max_drop: float) -> str:
    """Why they cannot tell a drop of `max_drop` points; empty where they can."""
    if not images:
        return "Nobody knows on how many images."
    if 100 / images <= max_drop:
        return ""
    words = f"One of {_counted(images)} weighs {100 / images:.3g} points, {max_drop:g} may be lost"
    return f"{words}: evaluate {math.ceil(100 / max_drop):,} images or more." if max_drop else f"{words}."


def _losses(found: Collection, entry: PageArtifact) -> list[Loss]:
    """Against the checkpoint that it stems from, and against the dense model; each on the most images that both saw,
    the one on the most images first. Of several dense ones that is one of the same checkpoint, then the best."""
    here = found.current(entry, found.records.evals)
    losses = []
    for words, others in (("its checkpoint", ancestors(found, entry)[-1:]), (DENSE, _dense(found, entry))):
        pairs = [(of_one_checkpoint(found, entry, other), mine.images, theirs.top1, Loss(words, mine, theirs))
                 for mine in here for other in others
                 for theirs in found.current(other, found.records.evals)
                 if mine.seen == theirs.seen and not theirs.failures]
        losses += [max(pairs, key=lambda pair: pair[:3])[3]] if pairs else []
    return sorted(losses, key=lambda loss: -loss.mine.images)


def _dense(found: Collection, entry: PageArtifact) -> list[PageArtifact]:
    """The dense models of its architecture; none for one of these."""
    return [] if is_plain(entry) else [e for e in found.entries if e.facts and entry.facts and is_plain(e)
                                       and e.facts.model.name == entry.facts.model.name]


def _command(mine: Eval, key: str) -> str:
    """What evaluates another artifact on the same images."""
    data = "digits" if mine.data.partition(":")[0] == "digits" else "IMAGES"
    split = mine.data.rpartition(":")[2]
    return typed("eval", key, "--data", data, *(["--split", split] if split in ("train", "val") else []),
                 *(["--images", str(mine.images)] if mine.images else []), "--json", f"{key}.eval.json")


def _incomparable(found: Collection, entry: PageArtifact, mine: Eval) -> Verdict:
    """A figure alone says nothing, but of a model that is what others are compared with."""
    headline = f"{format_percent(mine.top1)} top-1"
    if is_plain(entry) or entry.about.kind == "checkpoint":
        words = DENSE if is_plain(entry) else "nothing to compare with"
        return Verdict(NAME, INFO, headline, (_images(mine), words), mine.source.file)
    why = "Nothing to compare with: its checkpoint was not evaluated on the same images, under the same path."
    return Verdict(NAME, OPEN, headline, (_images(mine), why), mine.source.file,
                   _command(mine, source_of(found, entry)))
