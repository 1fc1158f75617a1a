"""Which dense artifact each pruned one is timed against."""
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
    """One artifact in a run of bench. `gmacs` are of one image; `baseline` is what it is compared with;
    `stand_in` marks a dense backbone with random weights; `load` is how it was opened."""

    runner: Runner
    path: str
    gmacs: float | None
    baseline: TimedArtifact | None = None
    stand_in: bool = False
    load: LoadConfig = LoadConfig()


# Writes the dense backbone of a candidate's model for the same backend; takes the path without its suffix.
DenseMaker = Callable[[TimedArtifact, Path], Path]


def with_baselines(candidates: list[TimedArtifact], given: str | Path | None, folder: Path,
                   opened: Callable[..., TimedArtifact],
                   make_dense: DenseMaker | None) -> tuple[list[TimedArtifact], list[str]]:
    """The baselines first, then the artifacts, each knowing its own; and notes about those that have none.

    `opened` opens a path; with `plain`, a checkpoint without rewrites. `make_dense` None makes none. One baseline is
    enough for all artifacts of the same model, backend and input; a dense artifact among them serves as it is. The
    baseline of an engine or a checkpoint has the same precision, else it is float32.
    """
    if given is not None:
        baseline = opened(given)
        for candidate in candidates:
            candidate.baseline = baseline
        return [baseline, *candidates], []
    notes: list[str] = []
    built: list[TimedArtifact] = []
    dense = {_kind(c): c for c in candidates if c.runner.facts and _serves(c)}
    for candidate in candidates:
        runner, kind = candidate.runner, _kind(candidate)
        if runner.facts is None:
            notes.append(f"{runner.name} was not written by dyvit, so its dense baseline is unknown; pass --baseline "
                         "FILE to compare it with another artifact.")
        elif _serves(candidate):
            notes.append(f"{runner.name} drops no tokens: it is its own baseline.")
        elif kind in dense:
            candidate.baseline = dense[kind]
        elif make_dense is None:
            notes.append(f"{runner.name} has no dense baseline; pass one to compare it.")
        else:
            try:
                made = opened(make_dense(candidate, folder / f"dense-{len(built)}"), plain=True)
            except (MissingDependency, ExportError, BackendError) as error:
                # The others need nothing that is not here.
                if not is_engine(candidate.path):
                    raise
                notes.append(f"{runner.name} has no dense baseline here ({str(error).rstrip('.')}); pass "
                             "--baseline FILE to compare it.")
                continue
            made.runner.name, made.stand_in = f"dense {runner.facts.model.name}", True
            candidate.baseline = dense[kind] = made
            built.append(made)
    return [*built, *candidates], notes


def _serves(candidate: TimedArtifact) -> bool:
    """True for a dense artifact that others are compared with."""
    runner = candidate.runner
    return bool(runner.facts and runner.facts.dense) and (_keeps_precision(candidate) or runner.precision == "float32")


def _keeps_precision(candidate: TimedArtifact) -> bool:
    """True where the baseline has the candidate's own precision: engines, and checkpoints, which are lowered when they
    are opened."""
    return is_engine(candidate.path) or candidate.runner.backend == "PyTorch"


def _kind(candidate: TimedArtifact) -> tuple[Any, ...]:
    """What two artifacts must share for their times to be compared as dense and pruned."""
    runner = candidate.runner
    precision = runner.precision if _keeps_precision(candidate) else "float32"
    return runner.facts and runner.facts.model, runner.label, runner.input.dtype == "uint8", precision


def count_gmacs(facts: ArtifactFacts | None) -> float | None:
    """1e9 multiply-accumulates for one image; None for files that are not ours."""
    if facts is None:
        return None
    from ..model.macs import count_costs

    return count_costs(facts.model, [facts.prune], facts.forms)[0].gmacs
