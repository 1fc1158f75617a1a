"""Which artifact was made from which, by the hashes of parents that artifacts record."""
from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from .collect import Collection, PageArtifact
from .records import Check


def lowered(entry: PageArtifact) -> Mapping[str, Any]:
    """How its precision was lowered; empty for float32, and for files that dyvit did not write."""
    return (entry.facts.lowered if entry.facts else None) or {}


def is_plain(entry: PageArtifact) -> bool:
    """True for a dense float32 model, neither pruned nor lowered."""
    return entry.facts is not None and entry.facts.dense and entry.facts.precision == "float32"


def data_of(entry: PageArtifact) -> str | None:
    """The data set that its model was trained on, if it is the demo's digits; else None."""
    facts = entry.facts
    if facts is None:
        return None
    trained_on = (facts.training or {}).get("data")
    return "digits" if trained_on == "digits" or facts.class_names == tuple("0123456789") else None


def origin_of(entry: PageArtifact) -> dict[str, str]:
    """The `file` and `sha256` of its parent as it records them; empty if it records none."""
    source = entry.about.engine.source if entry.about.engine else (entry.facts.parent if entry.facts else None)
    return {name: str(source[name]) for name in ("file", "sha256") if source and source.get(name)}


def parent_of(collection: Collection, entry: PageArtifact) -> PageArtifact | None:
    """Its parent, if that is in the folder."""
    digest = origin_of(entry).get("sha256")
    return next((e for e in collection.entries if e.about.sha256 == digest and e is not entry), None)


def ancestors(collection: Collection, entry: PageArtifact) -> list[PageArtifact]:
    """Its parent, the parent of that, and so on, as far as they are in the folder."""
    line = [entry]
    # A sidecar that was changed by hand may lead to a cycle.
    while (parent := parent_of(collection, line[-1])) and parent not in line:
        line.append(parent)
    return line[1:]


def source_of(collection: Collection, entry: PageArtifact) -> str:
    """The checkpoint that it was made from, as a path for commands in the folder; "CHECKPOINT" if unknown."""
    line = [entry, *ancestors(collection, entry)]
    checkpoints = dict(collection.records.checkpoints)
    swept = checkpoints.get(origin_of(line[-1]).get("sha256", ""), "CHECKPOINT")
    return line[-1].key if line[1:] else swept


def is_baseline(collection: Collection, entry: PageArtifact) -> bool:
    """True for a dense export, if the folder has pruned artifacts of its architecture to compare with it."""
    return is_plain(entry) and entry.about.kind != "checkpoint" and any(
        e.facts and entry.facts and not e.facts.dense and e.facts.model.name == entry.facts.model.name
        for e in collection.entries)


def of_one_checkpoint(collection: Collection, one: PageArtifact, other: PageArtifact) -> bool:
    """True if both were made from the same file, by its hash."""
    return bool(_line(collection, one) & _line(collection, other))


def is_own_reference(collection: Collection, entry: PageArtifact, check: Check) -> bool:
    """True if the reference of the check is the checkpoint that `entry` was made from."""
    if check.own:
        return True
    parent = (entry.facts.parent if entry.facts else None) or {}
    # A runner adds the set of weights to the name of a checkpoint.
    reference = re.sub(r" \((model|ema) weights\)$", "", check.reference)
    hashes = check.source.hashes(reference)
    if parent.get("sha256") in hashes:
        return True
    # The reference has changed since, or is not in the folder, so only its name can be compared.
    here = any(e.about.sha256 in hashes for e in collection.entries)
    return not here and reference == _file_name(str(parent.get("file", "")))


def _line(collection: Collection, entry: PageArtifact) -> set[str]:
    """The hashes of the artifact and of its ancestors."""
    line = [entry, *ancestors(collection, entry)]
    return {e.about.sha256 for e in line} | {o["sha256"] for e in line if "sha256" in (o := origin_of(e))}


def _file_name(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).name
