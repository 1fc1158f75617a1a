"""Verdicts, and the verdict without a measurement."""
from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from .collect import Collection, PageArtifact, R

PASS, WARN, FAIL, OPEN, INFO = "pass", "warn", "fail", "open", "info"
SIGNS = {PASS: "✓", WARN: "!", FAIL: "✗", OPEN: "?", INFO: "–"}  # noqa: RUF001  a dash, on purpose
MEANINGS = {PASS: "good", WARN: "doubtful", FAIL: "bad", OPEN: "not known", INFO: "no verdict"}


@dataclass(frozen=True)
class Verdict:
    """`state` is a key of SIGNS; `lines` are the figures behind the `headline`, `source` is the file that has them, and
    `command` measures them if they are missing or unsure."""

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
        """The sign as a word, for screen readers."""
        return MEANINGS[self.state]


def worst(states: Iterable[str]) -> str:
    return min(states, key=(FAIL, OPEN, WARN, PASS, INFO).index)


def missing(name: str, collection: Collection, entry: PageArtifact, records: tuple[R, ...], verb: str,
            command: str) -> Verdict:
    """The open verdict on an artifact that none of the `records` was measured on; `command` would measure it."""
    if stale := collection.stale(entry, records):
        why = f"{entry.name} has changed since {stale[0].source.file} was written."
        return Verdict(name, OPEN, f"{verb} on another file", (why,), command=command)
    if unsure := collection.unsure(entry, records):
        why = f"{unsure[0].source.file} does not say which {entry.name} it is about."
        return Verdict(name, OPEN, f"{verb} on an unknown file", (why,), command=command)
    return Verdict(name, OPEN, f"not {verb}", command=command)


def typed(*arguments: object) -> str:
    """The dyvit command with these arguments, quoted for a shell."""
    return shlex.join(["dyvit", *map(str, arguments)])
