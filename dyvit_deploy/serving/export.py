"""From a checkpoint, graph or engine to a Triton model repository."""
from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text

from ..artifacts.files import make_folder, require_source
from ..artifacts.locks import scratch_folder, sole_use
from ..calibration.targets import FORMAT_SUFFIXES
from ..config import KeepRequest, LoadConfig
from ..data.label_files import read_labels
from ..deploy.config import DeployConfig
from ..deploy.pipeline import export_artifact, plan_artifact
from ..deploy.report import DeployReport, Progress
from ..engine.build import BuildPlan
from ..engine.config import BuildConfig
from ..errors import ConfigError
from ..export.memory import collector_paused
from ..export.openvino import copy_openvino
from ..graph.files import copy_graph
from ..optional import require
from ..runners.open import is_checkpoint, is_engine
from ..settings.tables import Table
from .config import ServingConfig
from .interface import Servable, check_same_model, read_servable
from .journal import undo_unfinished
from .pbtxt import to_pbtxt
from .repository import (
    ModelFolder,
    model_folders,
    model_name,
    unfinished,
    version_exists,
    write_readme,
)

if TYPE_CHECKING:
    from ..model.checkpoint import RawCheckpoint


@dataclass(frozen=True)
class RepositoryReport:
    """The result of `export_repository`; false if an artifact was rejected, which leaves the repository unchanged.

    `models` maps each model's name to the backend that runs it; `exports` are the artifacts that were made for it.
    """

    KIND: ClassVar[str] = "repository"

    path: str
    models: dict[str, str]
    exports: tuple[DeployReport, ...] = ()
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return all(bool(export) for export in self.exports)

    @property
    def failures(self) -> tuple[str, ...]:
        return tuple(failure for export in self.exports for failure in export.failures)

    @property
    def advice(self) -> tuple[str, ...]:
        return tuple(line for export in self.exports for line in export.advice)

    def next_step(self, checkpoint: str | Path) -> str:
        """The command to run after this export."""
        rejected = [export for export in self.exports if not export]
        return rejected[0].next_step(checkpoint) if rejected else f"dyvit serve {shlex.quote(self.path)} --check"

    def to_json(self) -> dict[str, Any]:
        return {"passed": bool(self), "failures": list(self.failures), **dataclasses.asdict(self)}

    def table(self) -> Table:
        table = Table(title=Text(self.path), title_justify="left")
        for column in ("model", "runs in"):
            table.add_column(column)
        for name, backend in self.models.items():
            table.add_row(Text(name), backend)
        return table


def export_repository(source: str | Path, folder: str | Path, serving: ServingConfig = ServingConfig(),
                      config: DeployConfig = DeployConfig(), load: LoadConfig = LoadConfig(),
                      progress: Progress = Progress()) -> RepositoryReport:
    """Puts a model into the Triton repository `folder`, which is created if it is missing.

    Args:
        source: a checkpoint, which is exported with `config`, or an existing .onnx, .xml or .plan.
        serving: its name, batch and instances, and an `engine` of the checkpoint to serve instead of a graph.
        load: with several `keep.ratios`, one model per ratio R, which keeps R, R**2, ... of the patches, and a router
            with the plain name.

    Raises:
        ConfigError: options that contradict one another, an engine that was not made from the checkpoint, a name
            that is taken, or another export into the repository is running.
        DataError: `serving.labels` are not those of the model.
        ArtifactError, ExportError: `source` cannot be read, or an artifact or the repository cannot be written.
    """
    folder, source = Path(folder), require_source(source)
    with sole_use(folder.resolve(), name=folder), scratch_folder("serving") as scratch:
        undo_unfinished(folder)
        # Opening a checkpoint imports torch.
        with collector_paused():
            checkpoint = _check(source, folder, serving, config, load)
        served, exports = dict[float, Servable](), list[DeployReport]()
        loads = _loads(load)
        for ratio, one in loads.items():
            if len(loads) > 1:
                progress.say(f"keep ratio {ratio:g}")
            artifact: Path | str = serving.engine or source
            if not serving.engine and checkpoint is not None:
                artifact = scratch / f"{ratio:g}" / f"model{FORMAT_SUFFIXES[serving.graph]}"
                graph = dataclasses.replace(config, format=serving.graph)
                exports.append(export_artifact(checkpoint, artifact, graph, one, progress))
                if not exports[-1]:
                    return RepositoryReport(str(folder), {}, (_save_rejected(exports[-1], folder),))
            served[ratio] = read_servable(artifact)
            if checkpoint is not None:
                _check_origin(served[ratio], checkpoint, one)
        progress.say(f"writing {folder}")
        models = model_folders(served, serving)
        with unfinished(folder, models, serving.version):
            notes = write_readme(folder)
    return _report(folder, models, serving.version, exports, notes)


def _report(folder: Path, models: Sequence[ModelFolder], version: int, exports: Sequence[DeployReport],
            notes: Sequence[str]) -> RepositoryReport:
    cores = [folder / model.name / str(version) for model in models if model.servable]
    return RepositoryReport(
        str(folder), {model.name: model.config.get("backend", "ensemble") for model in models},
        tuple(_with_path(export, place / Path(export.path).name) for export, place in zip(exports, cores)),
        (*dict.fromkeys(note for export in exports for note in export.notes), *notes))


def plan_repository(source: str | Path, folder: str | Path, serving: ServingConfig = ServingConfig(),
                    config: DeployConfig = DeployConfig(), load: LoadConfig = LoadConfig()) -> BuildPlan:
    """The steps that `export_repository` would take; raises the same errors as its checks before the work."""
    source = require_source(source)
    checkpoint = _check(source, Path(folder), serving, config, load)
    steps, commands = [], list[str]()
    for ratio, one in _loads(load).items():
        if serving.engine or checkpoint is None:
            servable = read_servable(serving.engine or source)
            steps.append(f"read {servable.path}, which {servable.backend} runs")
        else:
            plan = plan_artifact(checkpoint, f"model{FORMAT_SUFFIXES[serving.graph]}",
                                 dataclasses.replace(config, format=serving.graph), one)
            steps += [f"keep ratio {ratio:g}: {step}" if len(_loads(load)) > 1 else step for step in plan.steps]
            commands += plan.commands
    what = f"the models, their preprocessing and ensembles{', and a router' if len(_loads(load)) > 1 else ''}"
    return BuildPlan((*steps, f"write {folder}: {what}"), tuple(commands))


def _check(source: Path, folder: Path, serving: ServingConfig, config: DeployConfig, load: LoadConfig,
           ) -> RawCheckpoint | None:
    """Opens `source` if it is a checkpoint; raises ConfigError or MissingDependency before the work."""
    # tritonclient may be missing.
    to_pbtxt({})
    require("jinja2", extra="triton")
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; a Triton repository is a folder, name one with -o.")
    # The repository must be writable; checked before the work.
    make_folder(folder.resolve().parent)
    ready = serving.engine or not is_checkpoint(source)
    if serving.engine and not is_engine(serving.engine):
        raise ConfigError(f"--engine takes a TensorRT plan; to serve {serving.engine}, name it in the checkpoint's "
                          "place.")
    if serving.engine and not is_checkpoint(source):
        raise ConfigError(f"{source} is not a checkpoint; to serve {serving.engine} alone, name it in its place.")
    asked = dataclasses.replace(config, format="onnx", timed=True)
    # With --engine, options that open the checkpoint are allowed: `_check_origin` compares the result with the engine.
    fixed = bool(load.keep.ratios and len(load.keep.ratios) > 1) if serving.engine else load != LoadConfig()
    if ready and (asked != DeployConfig() or fixed):
        raise ConfigError(f"{serving.engine or source} was fixed when it was made; leave out the options of precision, "
                          "graph and pruning, which apply only to an export.")
    checkpoint = _check_free(source, folder, serving, load)
    if config.build != BuildConfig():
        raise ConfigError("--format triton builds no engine; build one with --format trt, then pass --engine FILE.")
    return checkpoint


def _check_free(source: Path, folder: Path, serving: ServingConfig, load: LoadConfig) -> RawCheckpoint | None:
    """Opens `source` if it is a checkpoint; raises ConfigError if the repository has that version already."""
    from ..model.checkpoint import load_facts, open_checkpoint

    checkpoint = open_checkpoint(source, load.weights) if is_checkpoint(source) else None
    facts = [load_facts(checkpoint, one) for one in _loads(load).values()] if checkpoint is not None else []
    # Raises for a schedule that the model cannot have.
    for found in facts:
        _ = found.prune and found.prune.counts(found.model.patches)
        if serving.labels:
            read_labels(serving.labels, found.model.classes)
    name = serving.name or (facts and model_name(facts[0]))
    ratios = load.keep.ratios or ()
    for core in ([f"{name}-{ratio:g}" for ratio in ratios] if len(ratios) > 1 else [name]):
        if core and (folder / core / str(serving.version)).exists():
            raise version_exists(folder, core, serving.version)
    return checkpoint


def _loads(load: LoadConfig) -> dict[float, LoadConfig]:
    """How the checkpoint is opened for each model; by keep ratio where there are several."""
    ratios = load.keep.ratios
    if not ratios:
        return {load.keep.ratio or 1.0: load}
    if len(set(ratios)) < len(ratios):
        raise ConfigError(f"Keep ratios {', '.join(f'{ratio:g}' for ratio in ratios)} name a model twice.")
    if load.keep.ratio or load.keep.counts:
        raise ConfigError("Give only one of --keep-ratio, --keep-ratios and --keep-counts.")
    return {ratio: dataclasses.replace(load, keep=_with_ratio(load.keep, ratio)) for ratio in ratios}


def _with_ratio(keep: KeepRequest, ratio: float) -> KeepRequest:
    return dataclasses.replace(keep, ratio=ratio, ratios=None)


def _check_origin(servable: Servable, checkpoint: RawCheckpoint, load: LoadConfig) -> None:
    from ..model.checkpoint import load_facts

    check_same_model(servable, load_facts(checkpoint, load), checkpoint.path)


def _save_rejected(report: DeployReport, folder: Path) -> DeployReport:
    """A rejected artifact, moved beside the repository to be looked at."""
    made, folder = Path(report.path), folder.resolve()
    kept = folder.with_name(f"{folder.name}.rejected{made.suffix}")
    if made.suffix == FORMAT_SUFFIXES["onnx"]:
        copy_graph(made, kept)
        return _with_path(report, kept)
    copy_openvino(made, kept)
    return _with_path(report, kept)


def _with_path(report: DeployReport, path: Path) -> DeployReport:
    return dataclasses.replace(report, export=dataclasses.replace(report.export, path=str(path)))
