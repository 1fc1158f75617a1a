"""The same build as a command of trtexec or Polygraphy, for people who know these."""
from __future__ import annotations

import shlex

from ..graph.read import Tensor
from .config import BatchProfile, BuildConfig
from .library import LibrarySpec, effective


def trtexec_line(spec: LibrarySpec, onnx: str, plan: str, inputs: list[Tensor], config: BuildConfig) -> str:
    """The trtexec command that builds the same engine; `tensorrt_rtx` is its name for RTX."""
    config = effective(spec, config)
    words = ["trtexec" if spec.format == "trt" else "tensorrt_rtx", f"--onnx={onnx}", f"--saveEngine={plan}"]
    words += ["--stronglyTyped"] if spec.format == "trt" else []
    for i, profile in enumerate(config.profiles):
        words += [f"--profile={i}"] if len(config.profiles) > 1 else []
        words += [f"--{name}Shapes={_shapes(inputs, batch)}" for name, batch in _sizes(profile)]
    if config.workspace_mib is not None:
        words.append(f"--memPoolSize=workspace:{config.workspace_mib:g}M")
    if config.timing_cache:
        words.append(f"--timingCacheFile={config.timing_cache}")
    if config.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={config.optimization_level}")
    for wish, option in ((config.version_compatible, "--versionCompatible"),
                         (config.hardware_compatible, "--hardwareCompatibilityLevel=ampere+"),
                         (config.refittable, "--refit"), (config.strip_weights, "--stripWeights"),
                         (not config.tf32, "--noTF32")):
        words += [option] if wish else []
    if config.compute_capabilities:
        words.append("--computeCapabilities=" + ",".join(config.compute_capabilities).replace(".", ""))
    return shlex.join([*words, "--profilingVerbosity=detailed"])


def polygraphy_line(spec: LibrarySpec, onnx: str, plan: str, inputs: list[Tensor], config: BuildConfig) -> str:
    """The polygraphy command that builds the same engine."""
    config = effective(spec, config)
    words = ["polygraphy", "convert", onnx, "--convert-to", "trt", "-o", plan, "--strongly-typed",
             "--profiling-verbosity", "detailed"]
    for profile in config.profiles:
        for name, batch in _sizes(profile):
            words += [f"--trt-{name}-shapes", *_polygraphy_shapes(inputs, batch)]
    if config.workspace_mib is not None:
        words += ["--pool-limit", f"workspace:{config.workspace_mib:g}M"]
    if config.timing_cache:
        words += ["--load-timing-cache", config.timing_cache, "--save-timing-cache", config.timing_cache]
    if config.optimization_level is not None:
        words += ["--builder-optimization-level", str(config.optimization_level)]
    for wish, option in ((config.version_compatible, "--version-compatible"),
                         (config.hardware_compatible, "--hardware-compatibility-level=AMPERE_PLUS"),
                         (config.refittable, "--refittable"), (config.strip_weights, "--strip-plan"),
                         (config.tf32 and spec.format == "trt", "--tf32")):
        words += [option] if wish else []
    if config.compute_capabilities:
        words += ["--compute-capabilities", *config.compute_capabilities]
    if spec.format == "trt":
        return shlex.join(words)
    # Polygraphy has no option for it there, and the library's default is on.
    return f"POLYGRAPHY_USE_TENSORRT_RTX=1 {shlex.join(words)}" + ("" if config.tf32 else "  # leaves TF32 on")


def _sizes(profile: BatchProfile) -> tuple[tuple[str, int], ...]:
    return ("min", profile.min), ("opt", profile.opt), ("max", profile.max)


def _with_batch(tensor: Tensor, batch: int) -> list[str]:
    return [str(batch if side is None else side) for side in tensor.shape]


def _shapes(inputs: list[Tensor], batch: int) -> str:
    return ",".join(f"{t.name}:{'x'.join(_with_batch(t, batch))}" for t in inputs)


def _polygraphy_shapes(inputs: list[Tensor], batch: int) -> list[str]:
    return [f"{t.name}:[{','.join(_with_batch(t, batch))}]" for t in inputs]
