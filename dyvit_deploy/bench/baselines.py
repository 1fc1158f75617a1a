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
    built: list[TimedArtifact] = []
    dense = {(_match_key(c), _is_rewritten(c)): c for c in candidates if c.runner.facts and _is_baseline(c)}

    def find(candidate: TimedArtifact, rewritten: bool) -> TimedArtifact | None:
        key = _match_key(candidate), rewritten
        if key not in dense and make_dense is not None:
            made = opened(make_dense(candidate, folder / f"dense-{len(built)}", rewritten), plain=True)
            assert candidate.runner.facts is not None
            made.runner.name = f"dense {candidate.runner.facts.model.name}{', rewritten' * rewritten}"
            made.stand_in, dense[key] = True, made
            built.append(made)
            if rewritten:
                made.baseline = find(candidate, False)
        return dense.get(key)

    for candidate in candidates:
        runner = candidate.runner
        if runner.facts is None:
            notes.append(f"{runner.name} was not written by dyvit, so its dense baseline is unknown; pass --baseline "
                         "FILE to compare it with another artifact.")
            continue
        own, rewritten = _is_baseline(candidate), _is_rewritten(candidate)
        if own and not rewritten:
            notes.append(f"{runner.name} drops no tokens: it is its own baseline.")
            continue
        try:
            candidate.baseline = find(candidate, False)
            candidate.rewritten = find(candidate, True) if rewritten and not own else None
        except (MissingDependency, ExportError, BackendError) as error:
            # Only an engine's baseline may need a library or a GPU that is missing here.
            if not is_engine(candidate.path):
                raise
            notes.append(f"{runner.name} has no dense baseline here ({str(error).rstrip('.')}); pass --baseline FILE "
                         "to compare it.")
            continue
        if candidate.baseline is None:
            notes.append(f"{runner.name} has no dense baseline; pass one to compare it.")
    return [*built, *candidates], notes


def _is_baseline(candidate: TimedArtifact) -> bool:
    """True for a dense artifact that can be the baseline of others."""
    runner = candidate.runner
    return bool(runner.facts and runner.facts.dense) and (_keeps_precision(candidate) or runner.precision == "float32")


def _is_rewritten(candidate: TimedArtifact) -> bool:
    """True for a graph with rewrites that a runtime does not make itself."""
    facts = candidate.runner.facts
    return bool(facts and facts.forms) and not _keeps_precision(candidate)


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
