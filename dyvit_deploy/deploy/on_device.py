"""Compares a new engine on this machine's GPU with its source before it is put in its place."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from ..artifacts.files import require_file
from ..artifacts.locks import scratch_folder, sole_use
from ..data.open import check_source, open_images
from ..engine.build import (
    BuildReport,
    build_command,
    build_engine,
    checked_target,
    install,
    refit_warning,
    require_builder,
)
from ..engine.config import BuildConfig
from ..engine.library import effective, refit_doubt
from ..engine.preflight import preflight
from ..engine.refit import checked_refit, refit_command, refit_engine
from ..engine.sidecar import EngineFacts
from ..errors import ArtifactError, BackendError
from ..machine.hardware import gpu
from ..parity.compare import ParityReport, compare
from ..parity.config import CheckConfig
from ..parity.tolerance import TOLERANCES, PrecisionTolerance
from ..runners.open import open_runner
from .report import EngineReport, Progress


def build_artifact(onnx: str | Path, path: str | Path, format: str, config: BuildConfig = BuildConfig(),
                   progress: Progress = Progress()) -> EngineReport:
    """Calls `build_engine`. If the result is in doubt (see `engine.library.refit_doubt`), it is compared with the graph
    on this GPU, and written to NAME.rejected.plan if it differs.

    Raises: see `build_engine`.
    """
    onnx, path = require_file(onnx), checked_target(path)
    library = require_builder(format, config)
    if refit_doubt(format, library.version, effective(library.spec, config)) is None:
        with sole_use(path):
            built = build_engine(onnx, path, format, config, progress.watch)
        return EngineReport(built, notes=built.notes)
    with sole_use(path), scratch_folder("build") as scratch:
        again = build_command(onnx, path, format, config)
        made = build_engine(onnx, scratch / path.name, format, config, progress.watch, again)
        return _compare_and_place(made, onnx, path, None, progress)


def refit_artifact(plan: str | Path, onnx: str | Path, path: str | Path, data: str | None = None,
                   progress: Progress = Progress()) -> EngineReport:
    """Calls `refit_engine`; the result is compared with the graph on this GPU, and written to NAME.rejected.plan if it
    differs.

    Args:
        data: the images to compare on, see `open_images`; None for noise.

    Raises: see `refit_engine`.
        DataError: there are no such images, or `onnx` has another model or schedule.
    """
    plan, onnx, path = require_file(plan), require_file(onnx), checked_refit(plan, path)
    if data is not None:
        check_source(data)
    with sole_use(path), scratch_folder("refit") as scratch:
        made = refit_engine(plan, onnx, scratch / path.name, refit_command(plan, onnx, path))
        return _compare_and_place(made, onnx, path, data, progress)


def _compare_and_place(made: BuildReport, onnx: Path, path: Path, data: str | None, progress: Progress) -> EngineReport:
    """Compares a finished engine with its graph and puts it in its place."""
    def run(settings: CheckConfig) -> ParityReport:
        progress.say(f"comparing the engine with {onnx.name}")
        with open_runner(onnx, device="cpu") as reference, open_runner(made.path) as runner:
            images = open_images(data, reference.image_spec(), limit=settings.images)
            return compare(reference, runner, images, settings, progress.track)

    placed, verdict, notes = place_engine(made, path, run)
    return EngineReport(placed, verdict, (*placed.notes, *(verdict.notes if verdict is not None else ()), *notes))


def earlier_file_note(path: Path) -> list[str]:
    """A note if a file of an earlier run is still at `path`."""
    return [f"{path} is from an earlier run and was left unchanged."] if path.exists() else []


def places(path: Path, passed: bool) -> tuple[Path, Path]:
    """Where an artifact goes, and where it would go otherwise: `path`, or NAME.rejected.SUFFIX if it did not pass."""
    rejected = path.with_suffix(f".rejected{path.suffix}")
    return (path, rejected) if passed else (rejected, path)


Comparison = Callable[[CheckConfig], ParityReport]


def place_engine(built: BuildReport, path: Path, run: Comparison | None,
                 ) -> tuple[BuildReport, ParityReport | None, list[str]]:
    """Moves a finished engine to `path`, or to NAME.rejected.plan if it differs from its source.

    Args:
        run: compares it, at every batch size in its profiles; None for no comparison.

    Returns:
        The report with the engine's final path, the comparison, and notes. If the engine cannot run here, the
        comparison is None and a note says why.
    """
    verdict, notes = _on_device(built, run) if run and gpu() is not None else (None, [])
    # A report that failed is false: only None is absent.
    passed = verdict is None or bool(verdict)
    target, other = places(path, passed)
    notes += earlier_file_note(other)
    settled = refit_warning(built.facts) if verdict is not None else []
    known = tuple(note for note in built.notes if note not in settled)
    return install(dataclasses.replace(built, notes=known), target), verdict, notes


def _on_device(built: BuildReport, run: Comparison) -> tuple[ParityReport | None, list[str]]:
    here = preflight(built.path)
    if not here:
        return None, [f"Not compared on this GPU: {', and '.join(here.problems)}."]
    sizes = tuple(sorted({size for p in built.facts.profiles for size in (p.min, p.opt, p.max)}))
    try:
        return run(CheckConfig(batches=sizes, tolerance=_tolerance(built.facts))), []
    except (ArtifactError, BackendError) as error:
        return None, [f"Not compared on this GPU: {error}"]


def _tolerance(facts: EngineFacts) -> PrecisionTolerance | None:
    """The loosest tolerance of the engine's precisions; None for float32 alone. TF32 counts as float16, whose mantissa
    has as many bits."""
    kinds = {*facts.products.values(), *facts.fallbacks.values(), *(["float16"] if facts.config.tf32 else [])}
    return max((TOLERANCES[kind] for kind in kinds & TOLERANCES.keys()), key=lambda known: known.error, default=None)
