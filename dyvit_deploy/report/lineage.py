"""What was made of what, by the hashes that artifacts keep of their parents."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from .collect import Collection, PageArtifact
from .records import Check


def lowered(entry: PageArtifact) -> Mapping[str, Any]:
    """How its precision was lowered; empty for float32, and for files of others."""
    return (entry.facts.lowered if entry.facts else None) or {}


def is_plain(entry: PageArtifact) -> bool:
    """True for the dense float32 model, of which nothing was taken away."""
    return entry.facts is not None and entry.facts.dense and entry.facts.precision == "float32"


def data_of(entry: PageArtifact) -> str | None:
    """The data that the command line can name for its model: "digits" for the demo's scenes, else None."""
    facts = entry.facts
    if facts is None:
        return None
    trained_on = (facts.training or {}).get("data")
    return "digits" if trained_on == "digits" or facts.class_names == tuple("0123456789") else None


def origin_of(entry: PageArtifact) -> dict[str, str]:
    """The `file` and `sha256` that it says it was made of; empty where it does not say."""
    source = entry.about.engine.source if entry.about.engine else (entry.facts.parent if entry.facts else None)
    return {name: str(source[name]) for name in ("file", "sha256") if source and source.get(name)}


def parent_of(found: Collection, entry: PageArtifact) -> PageArtifact | None:
    """The artifact in the folder that it was made of."""
    digest = origin_of(entry).get("sha256")
    return next((e for e in found.entries if e.about.sha256 == digest and e is not entry), None)


def ancestors(found: Collection, entry: PageArtifact) -> list[PageArtifact]:
    """What it was made of, the nearest first; a sidecar that was changed by hand may lead round in a circle."""
    line = [entry]
    while (parent := parent_of(found, line[-1])) and parent not in line:
        line.append(parent)
    return line[1:]


def source_of(found: Collection, entry: PageArtifact) -> str:
    """The checkpoint that it stems from as it is typed in the folder; a word in capitals where nobody knows it."""
    line = [entry, *ancestors(found, entry)]
    known = dict(found.records.checkpoints)
    swept = known.get(origin_of(line[-1]).get("sha256", ""), "CHECKPOINT")
    return line[-1].key if line[1:] else swept


def is_baseline(found: Collection, entry: PageArtifact) -> bool:
    """True for a dense export where there are pruned ones of its architecture: what these are compared with."""
    return is_plain(entry) and entry.about.kind != "checkpoint" and any(
        e.facts and entry.facts and not e.facts.dense and e.facts.model.name == entry.facts.model.name
        for e in found.entries)


def of_one_checkpoint(found: Collection, one: PageArtifact, other: PageArtifact) -> bool:
    """True when both stem from the same file, by its hash."""
    return bool(_line(found, one) & _line(found, other))


def is_own_reference(found: Collection, entry: PageArtifact, check: Check) -> bool:
    """True when what `entry` was compared with is what it was made of, or another float32 artifact of that."""
    if check.own:
        return True
    known = check.source.hashes(check.reference)
    if known & _line(found, entry) - {entry.about.sha256}:
        return True
    here = [e for e in found.entries if e.about.sha256 in known]
    if here:
        return any(e.precision == "float32" and of_one_checkpoint(found, e, entry) for e in here)
    return bool(check.reference == _file_name(origin_of(entry).get("file", "")))  # it has changed since, or is not here


def _line(found: Collection, entry: PageArtifact) -> set[str]:
    """The hashes of all that it stems from, itself included."""
    line = [entry, *ancestors(found, entry)]
    return {e.about.sha256 for e in line} | {o["sha256"] for e in line if "sha256" in (o := origin_of(e))}


def _file_name(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).name
