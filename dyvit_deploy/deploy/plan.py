"""What an export would do: its steps, sizes, and the same in the words of other tools."""
from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path

from ..artifacts.files import is_timm, require_source, size_mib
from ..calibration.targets import ENGINE_FORMATS, ResolvedTarget
from ..config import QUANTIZED, LoadConfig
from ..engine.build import BuildPlan, profile_words
from ..engine.commands import polygraphy_line, trtexec_line
from ..engine.layers import WIDTH
from ..engine.library import LIBRARY_SPECS
from ..graph.files import data_path, fits_one_file
from ..graph.read import Tensor
from ..settings.fields import command_flags
from .config import DeployConfig
from .gate import BATCHES, FLOAT32_BATCHES


def plan_export(checkpoint: str | os.PathLike[str], path: str | Path, config: DeployConfig, load: LoadConfig,
                resolved: ResolvedTarget) -> BuildPlan:
    """The steps of `pipeline.export_artifact` with these arguments, without taking them.

    Raises:
        CheckpointError, ConfigError: the checkpoint cannot be opened as asked.
    """
    from ..model.checkpoint import load_model

    model, facts = load_model(checkpoint, load)
    checkpoint, path = require_source(Path(checkpoint)), Path(path)
    weights = sum(p.numel() for p in model.parameters()) * 4 / 2**20
    kept = " / ".join(map(str, (model.config.patches, *model.keep_counts)))
    size = "" if is_timm(checkpoint) else f" ({size_mib(checkpoint):.1f} MiB)"
    steps = [f"open {checkpoint}{size}: {facts.model.name}, patches kept {kept}",
             f"export a float32 ONNX graph, about {weights:.1f} MiB"]
    if resolved.precision != "float32":
        steps += _lowering_steps(config, resolved, weights)
    if config.precision.gate:
        batches = FLOAT32_BATCHES if resolved.precision == "float32" else BATCHES
        steps.append(f"compare with the checkpoint at batch {' and '.join(map(str, batches))}")
    commands: tuple[str, ...] = ()
    if config.format in ENGINE_FORMATS:
        images = _images(config, model.config.image_size)
        steps += [*profile_words([images], config.build.profiles),
                  f"build the engine with {LIBRARY_SPECS[config.format].name}",
                  "compare the precision of every matrix product with the graph's"]
        graph = path.with_suffix(".onnx")
        for_tensorrt = dataclasses.replace(config.precision, target="tensorrt")
        to_graph = dataclasses.replace(config, format="onnx", precision=for_tensorrt, build=type(config.build)())
        spec = LIBRARY_SPECS[config.format]
        commands = (export_command(checkpoint, graph, to_graph, load),
                    *(line(spec, str(graph), str(path), [images], config.build)
                      for line in (trtexec_line, polygraphy_line)))
    beside = {"openvino": path.with_suffix(".bin").name}.get(config.format)
    final = weights * WIDTH[resolved.precision] / WIDTH["float32"]
    if config.format == "onnx" and not fits_one_file(int(final * 2**20)):
        beside = data_path(path).name
    beside = f"{path.name}.json" if config.format in ENGINE_FORMATS else beside
    return BuildPlan((*steps, f"write {path}" + (f" and {beside}" if beside else "")), commands)


def _lowering_steps(config: DeployConfig, resolved: ResolvedTarget, weights: float) -> list[str]:
    calibration = config.calibration
    steps = []
    if resolved.precision in QUANTIZED:
        steps.append(f"reuse the ranges in {calibration.ranges}" if calibration.ranges else
                     f"calibrate on at most {calibration.images} images of {calibration.data or 'noise'}")
    small = weights * WIDTH[resolved.precision] / WIDTH["float32"]
    steps.append(f"lower to {resolved.precision} for {resolved.target}, about {small:.1f} MiB of weights")
    return steps


def _images(config: DeployConfig, size: tuple[int, int]) -> Tensor:
    if config.export.input == "uint8":
        return Tensor("images", "uint8", (None, *size, 3))
    return Tensor("images", config.precision.io, (None, 3, *size))


def export_command(checkpoint: Path, path: Path, config: DeployConfig, load: LoadConfig = LoadConfig()) -> str:
    """The command line of `export_artifact` with these arguments."""
    return shlex.join(["dyvit", "export", str(checkpoint), "--format", config.format,
                       *command_flags(config, without=("format",)),
                       *command_flags(load, without=("engine", "precision")), "-o", str(path)])
