"""Builds a TensorRT engine from an ONNX file, and checks that its precisions are those of the graph."""
from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from rich.text import Text

from ..artifacts.facts import library_versions
from ..artifacts.files import check_target, require_file, sha256, size_mib
from ..errors import ArtifactError, BackendError, ConfigError, ExportError
from ..graph.names import node_labels
from ..graph.read import Graph, Tensor, computed_operands, graph_facts, graph_tensors, product_precisions, summary
from ..machine.hardware import gpu, system
from ..settings.fields import command_flags
from ..settings.tables import Table
from .commands import polygraphy_line, trtexec_line
from .config import BatchProfile, BuildConfig
from .layers import (
    EngineLayer,
    engine_precisions,
    fallback_text,
    from_inspector,
    from_log,
    fused_attention,
    precision_fallbacks,
)
from .library import BuilderLibrary, check_settings, effective, library_spec, open_library, refit_doubt
from .load import load_engine
from .monitor import Cancel, StepCallback, ignore_step, progress_monitor
from .network import add_profiles, build_failure, check_graph, parse, real_profiles, tensors
from .sidecar import BY_BUILDER, BY_GRAPH, ON_DEVICE, EngineFacts, sidecar_path, write_plan
from .timing_cache import load_timing_cache, save_timing_cache


@dataclass(frozen=True)
class BuildReport:
    """What was built. `seconds` is the builder's time; `notes` are for the user."""

    path: str
    facts: EngineFacts
    size_mib: float
    seconds: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def table(self) -> Table:
        facts = self.facts
        table = Table(title=Text(self.path), title_justify="left", show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in describe(facts).items():
            table.add_row(name, Text(value))
        table.add_row("size", f"{self.size_mib:.1f} MiB, built in {self.seconds:.1f} s")
        return table


def describe(facts: EngineFacts) -> dict[str, str]:
    """The facts that every view of an engine shows, as text by row."""
    target, fused = facts.target, len(facts.fused_attention)
    total = fused + len(facts.unfused_attention)
    built_on = (f"{target['gpu']} (compute capability {target.get('compute_capability')})" if target.get("gpu")
                else "a machine without a GPU")
    built_for = ", ".join(target.get("compute_capabilities") or ())
    counted = summary(facts.products.values())
    rows = {
        "builder": f"{library_spec(facts.builder['format']).name} {facts.builder['version']}, on {built_on}, "
                   f"{target['system']}",
        "for": f"compute capability {built_for}" if built_for else "",
        "profiles": ", ".join(f"{p.name}: batch {p.min} to {p.max}, tuned for {p.opt}" for p in facts.profiles),
        "inputs": _interface(facts.inputs), "outputs": _interface(facts.outputs),
        "matrix products": (", ".join(f"{n} in {kind}" for kind, n in counted.items()) or "none")
                           + f"; {facts.verified}" + (f", {len(facts.untold)} not told" if facts.untold else ""),
        "wider than asked": fallback_text(facts.fallbacks, facts.products),
        "attention": f"{fused} of {total} are one fused kernel" if total else "",
        "weights": "left out; dyvit refit puts them back" if facts.stripped else "",
    }
    return {name: value for name, value in rows.items() if value}


def _interface(tensors: dict[str, Any]) -> str:
    return "; ".join(f"{name} {dtype} [{', '.join('batch' if side is None else str(side) for side in shape)}]"
                     for name, (dtype, shape) in tensors.items())


@dataclass(frozen=True)
class BuildPlan:
    """What a build would do, without doing it; `commands` do the same with other tools."""

    KIND: ClassVar[str] = "plan"

    steps: tuple[str, ...]
    commands: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def table(self) -> Table:
        table = Table(title="Nothing is built; the steps would be", title_justify="left", show_header=False)
        table.add_column(justify="right")
        table.add_column(overflow="fold")
        for number, step in enumerate(self.steps, 1):
            table.add_row(str(number), Text(step))
        return table


def plan_build(onnx: str | Path, path: str | Path, format: str, config: BuildConfig = BuildConfig()) -> BuildPlan:
    """The steps, sizes and equivalent commands of `build_engine`; needs no TensorRT.

    Raises:
        ArtifactError, ConfigError, ExportError: what can be refused before the work.
    """
    onnx, path, spec = require_file(onnx), check_suffix(path), library_spec(format)
    check_settings(spec, config, gpu=True)
    graph = Graph(onnx)
    check_graph(graph)
    inputs = graph_tensors(graph.structure.graph.input)
    profiles = real_profiles(inputs, config.profiles, config.profiles != BuildConfig().profiles)
    steps = (f"read {onnx} ({size_mib(onnx):.1f} MiB) into a strongly typed network of {spec.name}",
             *profile_words(inputs, profiles),
             f"build; the plan will hold about {size_mib(onnx):.0f} MiB of weights"
             + (", left out" if config.strip_weights else "") + ", and kernels",
             "compare the precision of every matrix product with the graph's",
             f"write {path} and {sidecar_path(path).name}")
    settings = dataclasses.replace(config, profiles=profiles)
    return BuildPlan(steps, tuple(line(spec, str(onnx), str(path), inputs, settings)
                                  for line in (trtexec_line, polygraphy_line)))


def profile_words(inputs: list[Tensor], profiles: Sequence[BatchProfile]) -> list[str]:
    """One step per optimization profile, with the size of its largest input."""
    return [f"add profile {p.name}: batch {p.min} to {p.max}, tuned for {p.opt}, at most "
            f"{_input_mib(inputs, p.max):.1f} MiB of images" for p in profiles]


def _input_mib(inputs: list[Tensor], batch: int) -> float:
    return sum(math.prod(batch if side is None else side for side in tensor.shape) * np.dtype(tensor.dtype).itemsize
               for tensor in inputs) / 2**20


def check_suffix(path: str | Path) -> Path:
    """Raises ConfigError unless `path` is named like a plan."""
    path = Path(path)
    if path.suffix.lower() != ".plan":
        raise ConfigError(f"Engines are written as .plan files, not {path.name}; change -o.")
    return path


def checked_target(path: str | Path) -> Path:
    """`path`, once it is sure that a plan and its sidecar can be written there."""
    path = check_suffix(path)
    check_target(sidecar_path(path))
    return check_target(path)


def build_engine(onnx: str | Path, path: str | Path, format: str, config: BuildConfig = BuildConfig(),
                 watch: StepCallback = ignore_step, rebuild: str | None = None) -> BuildReport:
    """Builds the engine of `onnx` and writes it to `path`, with its facts beside it.

    Args:
        onnx: a graph that dyvit wrote, or any whose only free dimension is the batch.
        format: "trt" or "rtx".
        watch: is called at every step of the builder.
        rebuild: the command that makes the plan again; default is `dyvit build`.

    Raises:
        ConfigError: a setting that this library, graph or GPU does not have.
        MissingDependency, BackendError: the library or the GPU is not there, or memory does not suffice.
        ExportError: the graph cannot be built, or the engine is not in the precision of the graph, unless `config`
            allows that.
        KeyboardInterrupt: Ctrl-C; nothing was written.
    """
    onnx, path = require_file(onnx), checked_target(path)
    library = require_builder(format, config)
    config = effective(library.spec, config)
    graph = Graph(onnx)
    check_graph(graph)
    made = _compile(library, onnx, config, watch)
    wanted = product_precisions(graph.structure)
    layers, verified = _layers(library, made.plan, config)
    found = engine_precisions(layers, wanted, computed_operands(graph.structure))
    fallbacks = precision_fallbacks(wanted, found)
    notes = _check_precisions(found, wanted, fallbacks, config.allow_precision_fallback)
    fused, apart = fused_attention(layers)
    facts = EngineFacts(
        plan={}, builder={"format": format, "version": library.version}, config=config, target=_target(config),
        profiles=made.profiles, inputs=_as_json(made.inputs), outputs=_as_json(made.outputs),
        products=wanted | {node: found[node] for node in fallbacks}, fallbacks=fallbacks,
        source={"file": onnx.name, "sha256": sha256(onnx)},
        rebuild=rebuild or build_command(onnx, path, format, config),
        untold=tuple(node for node in wanted if node not in found), verified=verified if found else BY_GRAPH,
        stripped=config.strip_weights, model=graph_facts(graph.structure, str(onnx)), layers=tuple(layers),
        fused_attention=fused, unfused_attention=apart,
        versions=library_versions("tensorrt", "tensorrt-rtx", "onnx"))
    return save_engine(path, made.plan, facts, made.seconds, [*made.notes, *notes, *refit_warning(facts)])


def build_command(onnx: Path, path: Path, format: str, config: BuildConfig) -> str:
    """The command that builds such an engine."""
    return shlex.join(["dyvit", "build", str(onnx), "--format", format, *command_flags(config), "-o", str(path)])


def refit_warning(facts: EngineFacts) -> list[str]:
    """The note of an engine that must be compared with its graph and was not, see `libraries.refit_doubt`."""
    doubt = refit_doubt(facts.builder["format"], facts.builder["version"], facts.config)
    return [f"{doubt}, and this one was not compared with its graph on a GPU: run dyvit check MODEL PLAN where it "
            "loads, or build it without --refittable."] if doubt else []


class _Compiled(NamedTuple):
    """What came out of the builder: the plan's bytes, and the network's interface."""

    plan: Any
    seconds: float
    inputs: list[Tensor]
    outputs: list[Tensor]
    profiles: tuple[BatchProfile, ...]
    notes: list[str]


def _compile(library: BuilderLibrary, onnx: Path, config: BuildConfig, watch: StepCallback) -> _Compiled:
    """Runs the builder on `onnx`; see `build_engine` for what it raises."""
    builder, network = parse(library, onnx)
    inputs, outputs = tensors(network)
    profiles = real_profiles(inputs, config.profiles, config.profiles != BuildConfig().profiles)
    notes = [f"{why}." for name, why in library.spec.ignored.items() if getattr(config, name) is not None]
    settings = _settings(library, builder, inputs, config)
    ignored = "timing_cache" in library.spec.ignored
    cache = None if config.timing_cache is None or ignored else Path(config.timing_cache)
    if cache and (note := load_timing_cache(library, settings, cache)):
        notes.append(note)
    cancel = Cancel()
    settings.progress_monitor = progress_monitor(library, watch, cancel)
    started = time.perf_counter()
    with cancel.on_interrupt():
        plan = builder.build_serialized_network(network, settings)
    seconds = time.perf_counter() - started
    if plan is None:
        raise build_failure(library, onnx, config.workspace_mib)
    if cache:
        try:
            save_timing_cache(settings, cache)
        # A finished engine is worth more than the cache.
        except ArtifactError as error:
            notes.append(str(error))
    return _Compiled(plan, seconds, inputs, outputs, profiles, notes)


def _check_precisions(found: Mapping[str, str], wanted: Mapping[str, str], fallbacks: Mapping[str, str],
                      allowed: bool) -> list[str]:
    """Notes on products that the engine does not name, and on `fallbacks` that are allowed.

    Raises:
        ExportError: a product came out wider than the graph asks for, and that is not `allowed`.
    """
    notes = []
    if fallbacks:
        wider = (f"{len(fallbacks)} of {len(wanted)} matrix products {'is' if len(fallbacks) == 1 else 'are'} wider "
                 f"than asked: {fallback_text(fallbacks, found)}")
        if not allowed:
            raise ExportError(f"{wider}; build it with --allow-precision-fallback to accept that, or export it in "
                              "another precision; nothing was written.")
        notes.append(f"{wider}; accepted, as --allow-precision-fallback says.")
    silent = [node for node in wanted if node not in found]
    if silent:
        notes.append(f"The engine does not tell the precision of {len(silent)} of {len(wanted)} matrix products "
                     f"({', '.join(node_labels(silent)[:3])}); theirs are what the graph asks for.")
    return notes


def save_engine(path: Path, plan: Any, facts: EngineFacts, seconds: float, notes: list[str]) -> BuildReport:
    """Writes a plan and its facts, with the plan's hash and size filled in."""
    content = memoryview(plan)
    digest = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": content.nbytes}
    facts = dataclasses.replace(facts, plan=digest)
    write_plan(path, content, facts)
    return BuildReport(str(path), facts, size_mib(path), seconds, tuple(notes))


def install(report: BuildReport, path: Path) -> BuildReport:
    """Moves a finished engine to its place, with its sidecar."""
    return save_engine(path, Path(report.path).read_bytes(), report.facts, report.seconds, list(report.notes))


def require_builder(format: str, config: BuildConfig) -> BuilderLibrary:
    """The library that builds `format`, after checking that it can build with `config` here.

    Raises:
        ConfigError: a setting that it does not have.
        MissingDependency, BackendError: it is not installed, or has no GPU to build on.
    """
    spec = library_spec(format)
    found = gpu()
    check_settings(spec, config, found is not None)
    library = open_library(format)
    for capability in config.compute_capabilities:
        _capability(library, capability)
    if found is None and not spec.builds_without_gpu:
        raise BackendError(f"{spec.name} builds on the GPU that it builds for, and none with a driver works here; "
                           "build on that machine, or choose --format rtx, which needs no GPU to build.")
    return library


def _settings(library: BuilderLibrary, builder: Any, inputs: list[Tensor], config: BuildConfig) -> Any:
    """The library's builder config for `config`. Precision is not a setting: it is that of the graph."""
    trt = library.trt
    settings = builder.create_builder_config()
    # Otherwise the inspector does not name the graph nodes of a layer.
    settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    add_profiles(builder, settings, inputs, config.profiles)
    if not config.tf32:
        settings.clear_flag(trt.BuilderFlag.TF32)
    for wish, flag in (("version_compatible", "VERSION_COMPATIBLE"), ("refittable", "REFIT"),
                       ("strip_weights", "STRIP_PLAN")):
        if getattr(config, wish):
            settings.set_flag(getattr(trt.BuilderFlag, flag))
    if config.hardware_compatible:
        settings.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if config.workspace_mib is not None:
        settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(config.workspace_mib * 2**20))
    if config.optimization_level is not None:
        settings.builder_optimization_level = config.optimization_level
    if config.compute_capabilities:
        settings.num_compute_capabilities = len(config.compute_capabilities)
        for i, capability in enumerate(config.compute_capabilities):
            settings.set_compute_capability(_capability(library, capability), i)
    return settings


def _capability(library: BuilderLibrary, text: str) -> Any:
    name = f"SM{text.replace('.', '')}"
    known = [n for n in dir(library.trt.ComputeCapability) if n.startswith("SM")]
    if name not in known:
        usable = sorted((n for n in known if n != "SM75"), key=lambda n: int(n[2:]))
        listed = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in usable)
        raise ConfigError(f"{library.spec.name} {library.version} builds for compute capability {listed}, not {text}.")
    return getattr(library.trt.ComputeCapability, name)


def _layers(library: BuilderLibrary, plan: Any, config: BuildConfig) -> tuple[list[EngineLayer], str]:
    """The engine's layers, from the engine itself where a GPU can load it, else from the builder's log."""
    if gpu() is not None:
        # The engine may be for another GPU than this one.
        with contextlib.suppress(BackendError):
            loaded = load_engine(library, plan, "the engine", config.version_compatible)
            layers = from_inspector(_inspected(library, loaded.engine))
            if layers:
                return layers, ON_DEVICE
    layers = from_log(library.logger.layers)
    return layers, BY_BUILDER if layers else BY_GRAPH


def _inspected(library: BuilderLibrary, engine: Any) -> str:
    """The inspector's JSON. TensorRT reports the types of some layers only for known shapes; a context of
    TensorRT for RTX would compile kernels, and its inspector needs none."""
    inspector = engine.create_engine_inspector()
    context = engine.create_execution_context() if library.spec.format == "trt" else None
    if context is not None:
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            if engine.get_tensor_mode(name) == library.trt.TensorIOMode.INPUT:
                context.set_input_shape(name, tuple(engine.get_tensor_profile_shape(name, 0)[1]))
        inspector.execution_context = context
    text: str = inspector.get_engine_information(library.trt.LayerInformationFormat.JSON)
    return text


def _target(config: BuildConfig) -> dict[str, Any]:
    found = gpu()
    return {"gpu": found.name if found else None, "compute_capability": found.compute_capability if found else None,
            "compute_capabilities": list(config.compute_capabilities), "system": system()}


def _as_json(tensors: list[Tensor]) -> dict[str, Any]:
    return {tensor.name: [tensor.dtype, list(tensor.shape)] for tensor in tensors}
