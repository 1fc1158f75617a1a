"""What a verdict is, and how one that nothing was measured for says so."""
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
        return MEANINGS[self.state]


def worst(states: Iterable[str]) -> str:
    return min(states, key=(FAIL, OPEN, WARN, PASS, INFO).index)


def missing(name: str, found: Collection, entry: PageArtifact, records: tuple[R, ...], verb: str,
            command: str) -> Verdict:
    """None of the `records` is of the file that lies here."""
    if stale := found.stale(entry, records):
        why = f"{entry.name} has changed since {stale[0].source.file} was written."
        return Verdict(name, OPEN, f"{verb} on another file", (why,), command=command)
    if unsure := found.unsure(entry, records):
        why = f"{unsure[0].source.file} does not say which {entry.name} it is about."
        return Verdict(name, OPEN, f"{verb} on an unknown file", (why,), command=command)
    return Verdict(name, OPEN, f"not {verb}", command=command)


def typed(*words: str) -> str:
    return shlex.join(["dyvit", *words])
