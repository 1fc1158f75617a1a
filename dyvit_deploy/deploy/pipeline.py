"""From a checkpoint to an artifact in any format and precision, compared with the checkpoint and timed."""
from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..artifacts.facts import ArtifactFacts, library_versions
from ..artifacts.files import check_target, is_timm, require_source, size_mib
from ..artifacts.locks import scratch_folder, sole_use
from ..bench.config import BenchConfig
from ..bench.report import Timing
from ..calibration.collect import examine, ranges_for
from ..calibration.config import CalibrationConfig
from ..calibration.keep_layers import IMAGES, Drop, DropMeter, fewest_kept
from ..calibration.lowering import Lowered, Lowering
from ..calibration.modelopt import require_modelopt
from ..calibration.ranges import Ranges, image_notes
from ..calibration.sensitivity import LayerCost, percent, rank_layers
from ..calibration.targets import ENGINE_FORMATS, FORMAT_SUFFIXES, ResolvedTarget, resolve
from ..config import LEARNED, QUANTIZED, LoadConfig
from ..data.open import check_source, gate_is_separate, open_calibration, open_gate
from ..engine.build import BuildPlan, build_engine, refit_warning, require_builder
from ..engine.config import BuildConfig
from ..engine.library import check_settings, library_spec
from ..errors import ConfigError, DataError, ExportError
from ..export.memory import collector_paused, return_freed_memory
from ..export.onnx import ExportReport, export_onnx
from ..export.openvino import write_openvino
from ..graph.files import copy_graph, fits_one_file, has_data, write_graph
from ..graph.read import Graph, keep_outputs, product_precisions, set_facts, summary
from ..machine.openvino import cpu_has_bfloat16
from ..model.zoo import MODELS
from ..parity.compare import ParityReport, check_artifacts
from ..parity.config import CheckConfig
from ..runners.open import open_runner
from ..runners.openvino import OpenVINORunner
from ..settings.fields import command_flags
from .config import DeployConfig
from .dense import benchmark
from .gate import NOT_RUN, PASSED, REJECTED, Gate
from .on_device import earlier_file_note, place_engine, places
from .plan import export_command, plan_export
from .report import DeployReport, Progress

TIMED_BATCH, TIMED_SECONDS = 8, 5.0
# Speed-ups below are within the noise of so short a run.
SAME_SPEED = 1.03
# At most, because the gate keeps its images in memory.
GATE_IMAGES = 512
BLAME_IMAGES, BLAMED = 16, 3


def export_artifact(checkpoint: str | os.PathLike[str], path: str | Path, config: DeployConfig = DeployConfig(),
                    load: LoadConfig = LoadConfig(), progress: Progress = Progress()) -> DeployReport:
    """Exports `checkpoint` to `path`; an artifact that the gate rejects goes to NAME.rejected.SUFFIX instead.

    An engine is built from a graph that passed the gate; a graph that did not pass is kept instead.

    Args:
        checkpoint: see `load_model`.

    Raises:
        ConfigError: a combination that the target cannot run; or another command writes `path`.
        DataError: calibration images or ranges that cannot be used.
        ExportError: the graph or engine does not have the requested precision.
        MissingDependency, BackendError: a library or GPU that it needs is not here.
    """
    resolved = _checked(Path(checkpoint), Path(path), config)
    if config.format in ENGINE_FORMATS:
        return _export_engine(Path(checkpoint), Path(path), config, load, progress)
    progress.say(f"exporting {checkpoint}")
    config = dataclasses.replace(config, export=config.export.for_target(resolved.target))
    with sole_use(path), scratch_folder("export") as scratch:
        # Opening a checkpoint imports torch.
        with collector_paused():
            from ..model.checkpoint import load_facts, open_checkpoint

            opened = open_checkpoint(checkpoint, load.weights)
            # Lowering gigabytes of weights takes all memory that there is; the gate then reads them again.
            small = fits_one_file(sum(tensor.nbytes for tensor in opened.state.values()))
            gate = Gate(opened if small else checkpoint, load, progress)
            if resolved.precision == "float32":
                return _export_float32(opened, Path(path), config, load, gate, scratch)
            prune = load_facts(opened, load).prune
            # The gate compares kept tokens, unless the model's selector keeps no patch of the image.
            tokens = config.export.with_tokens or prune is None or prune.keeps_patches
            parent = scratch / "float32.onnx"
            report = export_onnx(opened, parent, dataclasses.replace(config.export, with_tokens=tokens), load)
            del opened
        return_freed_memory()
        return _LoweredExport(Graph(parent), report, resolved, config, gate, progress).finish(Path(path))


def plan_artifact(checkpoint: str | os.PathLike[str], path: str | Path, config: DeployConfig = DeployConfig(),
                  load: LoadConfig = LoadConfig()) -> BuildPlan:
    """What `export_artifact` would do; it raises the same errors as the checks before that work."""
    return plan_export(checkpoint, path, config, load, _checked(Path(checkpoint), Path(path), config, build=False))


def _checked(checkpoint: Path, path: Path, config: DeployConfig, build: bool = True) -> ResolvedTarget:
    """The resolved request, after all checks that can be made before the work; `build` also requires the builder."""
    resolved = resolve(config.format, config.precision, config.format == "openvino" and cpu_has_bfloat16(),
                       config.build.compute_capabilities)
    require_source(checkpoint)
    _check_target(checkpoint, path, resolved, build)
    if config.format in ENGINE_FORMATS and build:
        require_builder(config.format, config.build)
    elif config.format in ENGINE_FORMATS:
        check_settings(library_spec(config.format), config.build, gpu=True)
    elif dataclasses.replace(config.build, compute_capabilities=()) != BuildConfig():
        [flag, *_] = command_flags(config.build, without=("compute_capabilities",))
        raise ConfigError(f"{flag} is for engines; add --format trt or --format rtx.")
    calibration, request = config.calibration, config.precision
    if resolved.precision == "float32" and (calibration != CalibrationConfig() or request.max_drop is not None):
        raise ConfigError("Calibration and --max-drop are for a lower precision; add --int8, --fp8, --fp16 or --bf16.")
    if resolved.precision in QUANTIZED and not (calibration.data or calibration.ranges or calibration.allow_noise):
        raise ConfigError(f"{resolved.precision} is calibrated on images: pass --calib FOLDER, or reuse --ranges FILE "
                          "(--allow-random-calib tries it on noise).")
    if request.max_drop is not None and (resolved.format, resolved.precision) == ("openvino", "bfloat16"):
        raise ConfigError("OpenVINO's bfloat16 is one switch for all layers; --max-drop works with --int8.")
    if calibration.data:
        check_source(calibration.data)
    if calibration.ranges:
        Ranges.load(calibration.ranges)
    if resolved.precision != "float32" and (resolved.target == "tensorrt" or resolved.precision == "float16"):
        require_modelopt()
    return resolved


def _check_target(checkpoint: Path, path: Path, resolved: ResolvedTarget, write: bool) -> None:
    """Raises ConfigError or ArtifactError when `path` cannot be the artifact; only `write` touches the disk."""
    wanted, suffix = FORMAT_SUFFIXES[resolved.format], path.suffix.lower()
    if suffix != wanted and (resolved.format != "onnx" or suffix in FORMAT_SUFFIXES.values()):
        raise ConfigError(f"--format {resolved.format} writes {wanted} files, not {path.name}; change -o or --format.")
    if not write:
        return
    check_target(path)
    if resolved.format == "openvino":
        weights = check_target(path.with_suffix(".bin"))
        if weights.exists() and (not path.exists() or (checkpoint.exists() and weights.samefile(checkpoint))):
            raise ConfigError(f"{weights} exists and would be overwritten; choose another -o.")


def _export_float32(checkpoint: os.PathLike[str], path: Path, config: DeployConfig, load: LoadConfig, gate: Gate,
                    folder: Path) -> DeployReport:
    written = export_onnx(checkpoint, folder / "graph.onnx", config.export, load)
    graph = Graph(written.path)

    def write(target: Path, verdict: str) -> ExportReport:
        facts = dataclasses.replace(written.facts, gate=verdict)
        if config.format == "openvino":
            write_openvino(graph.path, target, facts)
        else:
            proto = graph.structure
            set_facts(proto, facts)
            write_graph(proto, target, graph.folder if has_data(proto) else None)
        size = written.size_mib if config.format == "onnx" else size_mib(target)
        return dataclasses.replace(written, path=str(target), facts=facts, size_mib=size)

    notes = _beyond_training(written.facts)
    products, verdict, compared = summary(product_precisions(graph.structure).values()), NOT_RUN, None
    if config.precision.gate:
        candidate = folder / "candidate.xml" if config.format == "openvino" else graph.path
        if candidate != graph.path:
            write(candidate, NOT_RUN)
        compared = gate.check_float32(candidate, path.name)
        verdict = PASSED if compared else REJECTED
    target, other = places(path, verdict != REJECTED)
    notes += earlier_file_note(other)
    return DeployReport(write(target, verdict), products, gate=compared, notes=tuple(notes))


def _beyond_training(facts: ArtifactFacts) -> list[str]:
    """Notes on a model that drops tokens in a way that it was not trained for."""
    if facts.dense or facts.prune is None:
        return []
    if span := facts.elastic:
        first = facts.prune.ratios(facts.model.patches)[0]
        return [] if span[0] <= first <= span[1] else [
            f"Trained for keep ratios from {span[0]:g} to {span[1]:g}, and this one is {first:g}: measure it with "
            "dyvit eval."]
    if facts.training or facts.prune.selector in LEARNED:
        return []
    lost = "Not trained to drop tokens, so it loses more accuracy than a trained student: measure it with dyvit eval"
    # Models of transformers have no name to train them by.
    if facts.model.name not in MODELS and not is_timm(facts.model.name):
        return [f"{lost}."]
    return [f"{lost}, or train with dyvit train --model {facts.model.name} --selector {facts.prune.selector} "
            "--data YOUR_DATA --backbone CHECKPOINT -o run/."]


def _export_engine(checkpoint: Path, path: Path, config: DeployConfig, load: LoadConfig,
                   progress: Progress) -> DeployReport:
    """A graph for TensorRT by way of `export_artifact`, then its engine."""
    with sole_use(path), scratch_folder("engine") as scratch:
        graph = scratch / f"{path.stem}.onnx"
        for_tensorrt = dataclasses.replace(config.precision, target="tensorrt")
        plain = dataclasses.replace(config, format="onnx", precision=for_tensorrt,
                                    build=BuildConfig(compute_capabilities=config.build.compute_capabilities))
        report = export_artifact(checkpoint, graph, plain, load, progress)
        if not report:
            kept = path.with_suffix(".rejected.onnx")
            copy_graph(report.path, kept)
            return dataclasses.replace(report, export=dataclasses.replace(report.export, path=str(kept)))
        progress.say(f"building the engine for {config.format}")
        again = export_command(checkpoint, path, config, load)
        made = build_engine(graph, scratch / "engine.plan", config.format, config.build, progress.watch, again)

        def run(settings: CheckConfig) -> ParityReport:
            progress.say("comparing the engine with the checkpoint")
            return check_artifacts(checkpoint, made.path, config.calibration.data, settings, load, progress.track)

        compared = config.precision.gate or refit_warning(made.facts)
        built, verdict, notes = place_engine(made, path, run if compared else None)
        if config.build.strip_weights:
            graph_again = export_command(checkpoint, path.with_suffix(".onnx"), plain, load)
            notes.append(f"Its weights come with the graph: {graph_again}")
        return dataclasses.replace(report, engine=built, on_device=verdict, notes=(*report.notes, *built.notes, *notes))


class _LoweredExport:
    """Makes one lowered artifact from its float32 `parent`, a graph that has been written to a temporary folder."""

    def __init__(self, parent: Graph, report: ExportReport, resolved: ResolvedTarget, config: DeployConfig,
                 gate: Gate, progress: Progress) -> None:
        self.parent, self.report, self.resolved, self.config, self.gate = parent, report, resolved, config, gate
        self.say, self.track, self.folder = progress.say, progress.track, parent.path.parent
        self.notes = _beyond_training(report.facts)
        self.ranges: Ranges | None = None
        self.source = config.calibration.data or self._recorded_source()

    def finish(self, path: Path) -> DeployReport:
        """Lowers, compares, times, writes."""
        calibration = self.config.calibration
        images = open_calibration(self.source, self._model, calibration.images)
        if self.source is None:
            self.notes.append("No images were given, so noise took their place; pass --calib FOLDER to look for "
                              "overflow and to compare on real ones.")
        hashes = examine(images, calibration.allow_noise or self.source is None)
        self.notes += image_notes(hashes, images.skipped)
        if self.resolved.precision in QUANTIZED:
            self.say(f"reusing {calibration.ranges}" if calibration.ranges else f"calibrating on {images.name}")
            self.ranges = ranges_for(self.parent, images, hashes, calibration, self.track)
        self.say(f"lowering to {self.resolved.precision} for {self.resolved.target}")
        lowering = Lowering(self.parent, self.resolved, images, self.ranges, calibration.attention, self.track)
        lowered, drop = self._lower(lowering)
        return_freed_memory()
        self.notes += [str(node) for node in lowering.float32_nodes]
        candidate = self.folder / f"candidate{FORMAT_SUFFIXES[self.resolved.format]}"
        self._write(lowered, candidate, NOT_RUN, tokens=True)
        products = self._compiled(candidate) or summary(lowered.precisions.values())
        gate = self._compare(candidate) if self.config.precision.gate else None
        passed = (gate is None or bool(gate)) and not (drop and drop.failures)
        blame = () if passed else self._blame(lowered.kept)
        timing = self._time(candidate) if passed else None
        verdict = REJECTED if not passed else PASSED if gate is not None else NOT_RUN
        target, other = places(path, passed)
        self.notes += earlier_file_note(other)
        report = self._write(lowered, target, verdict, self.config.export.with_tokens)
        return DeployReport(report, products, lowered.kept, gate, drop, timing, blame, tuple(self.notes))

    @property
    def _model(self) -> Any:
        return self.report.facts.model

    def _recorded_source(self) -> str | None:
        """The data that reused ranges were collected on; DataError when they are missing."""
        if not self.config.calibration.ranges:
            return None
        source = Ranges.load(self.config.calibration.ranges).source.removesuffix(":train")
        if source == "noise" and not Path(source).exists():
            return None
        try:
            check_source(source)
        except DataError as error:
            raise DataError(f"The ranges were collected on {source}, which is not here to compare on; pass --calib "
                            "FOLDER with images.") from error
        return source

    def _lower(self, lowering: Lowering) -> tuple[Lowered, Drop | None]:
        allowed = self.config.precision.max_drop
        if allowed is None:
            return lowering.lower(), None
        images = open_gate(self.source, self._model, IMAGES)
        with self.gate.reference() as reference:
            meter = DropMeter(reference, images, allowed)
        self.say("measuring what each layer costs")
        ranked = self._ranked()

        def measure(keep: Sequence[str]) -> Drop:
            trial = self.folder / f"trial{FORMAT_SUFFIXES[self.resolved.format]}"
            self._write(lowering.lower(keep), trial, NOT_RUN, tokens=True)
            with open_runner(trial, device="cpu") as runner:
                drop = meter.drop(runner, keep)
            self.say(f"{len(keep)} layers kept in higher precision: {drop.points:+.2f} points lost")
            return drop

        drop = fewest_kept(measure, [layer.layer for layer in ranked])
        if len(drop.kept) == len(ranked) and not drop.failures:
            raise ExportError(f"Every layer would have to stay in a higher precision for a drop of {allowed:g} points "
                              "at most; allow more, or take a higher precision.")
        if drop.doubt:
            self.notes.append(f"--max-drop {allowed:g}: {drop.doubt}.")
        return lowering.lower(drop.kept), drop

    def _facts(self, lowered: Lowered, gate: str) -> ArtifactFacts:
        ranges = self.ranges and {"method": self.ranges.method, "images": len(self.ranges.images),
                                  "sha256": self.ranges.sha256()}
        rest = self.resolved.rest if self.resolved.precision in QUANTIZED else None
        how = {"target": self.resolved.target, "rest": rest, "kept": list(lowered.kept), "ranges": ranges}
        versions = library_versions("nvidia-modelopt", "openvino", "onnxruntime-gpu", "onnxruntime")
        facts = self.report.facts
        if self.config.precision.io == "float16" and facts.input == "float32":
            facts = dataclasses.replace(facts, input="float16")
        return dataclasses.replace(facts, precision=self.resolved.precision, lowered=how, gate=gate,
                                   versions=(facts.versions or {}) | versions)

    def _write(self, lowered: Lowered, path: Path, gate: str, tokens: bool) -> ExportReport:
        """Writes the artifact to `path`, with or without kept-token outputs."""
        facts = self._facts(lowered, gate)
        proto = lowered.proto if tokens else keep_outputs(lowered.proto, ["logits"])
        set_facts(proto, facts)
        graph = path if self.resolved.format == "onnx" else self.folder / "graph.onnx"
        write_graph(proto, graph)
        if self.resolved.format == "openvino":
            write_openvino(graph, path, facts)
        outputs = tuple(value.name for value in proto.graph.output)
        return ExportReport(str(path), facts, outputs, len(proto.graph.node), size_mib(path))

    def _compiled(self, candidate: Path) -> dict[str, int] | None:
        """The precisions that OpenVINO, which chooses them itself, compiled; ExportError when none is the requested."""
        if self.resolved.format != "openvino":
            return None
        with OpenVINORunner(candidate) as runner:
            found = runner.compiled_precisions()
        if not found.get(self.resolved.precision):
            raise ExportError(f"OpenVINO compiled no matrix product in {self.resolved.precision}, but in "
                              f"{', '.join(found)}; report this to us.")
        return found

    def _compare(self, candidate: Path) -> ParityReport:
        images = open_gate(self.source, self._model, min(self.config.calibration.images, GATE_IMAGES))
        report = self.gate.check(candidate, self.resolved.precision, images)
        if gate_is_separate(self.source) and report.skipped:
            self.notes.append(f"{len(report.skipped)} images to compare on could not be read: {report.skipped[0]}")
        if self.resolved.precision in QUANTIZED and not gate_is_separate(self.source):
            self.notes.append("Compared on the images that it was calibrated on; a folder with train/ and val/ keeps "
                              "them apart.")
        return report

    def _blame(self, kept: Sequence[str]) -> tuple[str, ...]:
        self.say("looking for the layers to blame")
        return tuple(f"{layer.layer} alone costs a logit error of {percent(layer.error)}"
                     for layer in [layer for layer in self._ranked() if layer.layer not in kept][:BLAMED])

    def _ranked(self) -> tuple[LayerCost, ...]:
        """The layers, costliest first, on few images: their order needs no more."""
        calibration = self.config.calibration
        few = open_calibration(self.source, self._model, min(BLAME_IMAGES, calibration.images))
        report = rank_layers(self.parent, self.resolved.precision, self.ranges, few, calibration.attention, self.track)
        return report.layers

    def _time(self, candidate: Path) -> Timing | None:
        """The speed of the artifact and its float32 parent; None for other targets, or where no timing is wanted."""
        # An engine is timed itself, on a GPU.
        if self.resolved.target != "cpu" or not self.config.timed:
            return None
        self.say("timing")
        config = BenchConfig((TIMED_BATCH,), TIMED_SECONDS, warmup=1, min_runs=3, baseline=self.parent.path,
                             device="cpu", memory=False)
        timing = benchmark([candidate], config).timings[-1]
        if timing.speedup is not None and timing.speedup < SAME_SPEED:
            self.notes.append(f"{self.resolved.precision} is NOT faster than float32 here: {timing.speedup:.2f}x.")
        return timing
