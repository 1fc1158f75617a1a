"""Finds the dense artifact that each pruned one is timed against."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifacts.facts import ArtifactFacts
from ..config import LoadConfig
from ..errors import BackendError, ExportError, MissingDependency
from ..runners.base import Runner
from ..runners.open import is_engine


@dataclass
class TimedArtifact:
    """One artifact in a run of bench.

    `gmacs` are 1e9 multiply-accumulates for one image. `baseline` is the artifact that it is compared with, `rewritten`
    a dense one with the same rewrites. `stand_in` marks a dense backbone with random weights. `load` are the settings
    that it was opened with.
    """

    runner: Runner
    path: str
    gmacs: float | None
    baseline: TimedArtifact | None = None
    rewritten: TimedArtifact | None = None
    stand_in: bool = False
    load: LoadConfig = LoadConfig()


# Rewrites of what drops tokens, which a dense model does not have.
OF_DROPPING = frozenset({"split-predictor", "one-gather"})
NONE: frozenset[str] = frozenset()
# Writes the dense backbone of a candidate's model for the same backend. Takes the candidate, the path to write without
# its suffix, and whether to apply the candidate's rewrites; returns the path with it.
DenseMaker = Callable[[TimedArtifact, Path, bool], Path]


def with_baselines(candidates: list[TimedArtifact], given: str | Path | None, folder: Path,
                   opened: Callable[..., TimedArtifact],
                   make_dense: DenseMaker | None) -> tuple[list[TimedArtifact], list[str]]:
    """Sets `baseline` and `rewritten` of each candidate. Returns the new baselines followed by the candidates, and
    notes about candidates without a baseline.

    The baseline is the dense model as torch exports it. A graph with rewrites is also compared with the dense model
    that has them, so that what rewrites gain is not taken for what dropping tokens gains; engines are not, because
    TensorRT makes fusions of its own. Artifacts of the same model, backend and input share baselines, and dense
    artifacts among the candidates are used as they are. The baseline of an engine or a checkpoint has the same
    precision, any other baseline is float32.

    Args:
        given: the artifact to compare all candidates with; None finds or makes a dense one for each.
        folder: where missing baselines are written.
        opened: opens a path; with `plain=True` without rewrites.
        make_dense: writes a missing baseline; None adds a note instead.
    """
    if given is not None:
        baseline = opened(given)
        for candidate in candidates:
            candidate.baseline = baseline
        return [baseline, *candidates], []
    notes: list[str] = []
    dense = _Dense(candidates, folder, opened, make_dense)
    for candidate in candidates:
        runner, rewrites = candidate.runner, _rewrites(candidate)
        if runner.facts is None:
            notes.append(f"{runner.name} was not written by dyvit, so its dense baseline is unknown; pass --baseline "
                         "FILE to compare it with another artifact.")
        elif _is_baseline(candidate) and not rewrites:
            notes.append(f"{runner.name} drops no tokens: it is its own baseline.")
        else:
            try:
                candidate.baseline = dense.find(candidate, NONE)
                if rewrites and not _is_baseline(candidate):
                    candidate.rewritten = dense.find(candidate, rewrites)
                reason = "has no dense baseline; pass one to compare it." if candidate.baseline is None else ""
            except (MissingDependency, ExportError, BackendError) as error:
                # Only an engine's baseline may need a library or a GPU that is missing here.
                if not is_engine(candidate.path):
                    raise
                reason = f"has no dense baseline here ({str(error).rstrip('.')}); pass --baseline FILE to compare it."
            notes += [f"{runner.name} {reason}"] if reason else []
    return [*dense.made, *candidates], notes


class _Dense:
    """The dense artifacts that others are compared with: those among the candidates, and those `made` for them."""

    def __init__(self, candidates: list[TimedArtifact], folder: Path, opened: Callable[..., TimedArtifact],
                 make: DenseMaker | None) -> None:
        self.made: list[TimedArtifact] = []
        self._folder, self._opened, self._make = folder, opened, make
        self._known = {(_match_key(c), _rewrites(c)): c for c in candidates if c.runner.facts and _is_baseline(c)}

    def find(self, candidate: TimedArtifact, rewrites: frozenset[str]) -> TimedArtifact | None:
        """The dense artifact for `candidate` with these rewrites, all of the candidate's or NONE; None if it cannot be
        made."""
        key = _match_key(candidate), rewrites
        if key not in self._known and self._make is not None:
            path = self._folder / f"dense-{len(self.made)}"
            made = self._opened(self._make(candidate, path, bool(rewrites)), plain=True)
            assert candidate.runner.facts is not None
            made.runner.name = f"dense {candidate.runner.facts.model.name}{', rewritten' if rewrites else ''}"
            made.stand_in, self._known[key] = True, made
            self.made.append(made)
            if rewrites:
                made.baseline = self.find(candidate, NONE)
        return self._known.get(key)


def _is_baseline(candidate: TimedArtifact) -> bool:
    """True for a dense artifact that can be the baseline of others."""
    runner = candidate.runner
    return bool(runner.facts and runner.facts.dense) and (_keeps_precision(candidate) or runner.precision == "float32")


def _rewrites(candidate: TimedArtifact) -> frozenset[str]:
    """The rewrites of a graph that its dense model can have, too. What runs with PyTorch or TensorRT counts as without:
    these fuse what they want themselves."""
    facts = candidate.runner.facts
    return NONE if facts is None or _keeps_precision(candidate) else frozenset(facts.forms) - OF_DROPPING


def _keeps_precision(candidate: TimedArtifact) -> bool:
    """True if the baseline must have the candidate's precision: for engines, and for checkpoints, which are lowered
    when they are opened."""
    return is_engine(candidate.path) or candidate.runner.backend == "PyTorch"


def _match_key(candidate: TimedArtifact) -> tuple[Any, ...]:
    """The properties that a pruned artifact and its dense baseline must share."""
    runner = candidate.runner
    precision = runner.precision if _keeps_precision(candidate) else "float32"
    return runner.facts and runner.facts.model, runner.label, runner.input.dtype == "uint8", precision


def count_gmacs(facts: ArtifactFacts | None) -> float | None:
    """1e9 multiply-accumulates for one image; None for files that dyvit did not write."""
    if facts is None:
        return None
    from ..model.macs import count_costs

    return count_costs(facts.model, [facts.prune], facts.forms)[0].gmacs
