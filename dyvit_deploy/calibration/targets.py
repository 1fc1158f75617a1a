"""The precisions that each runtime supports, as data."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import HALF, QUANTIZED
from ..errors import ConfigError, did_you_mean
from ..machine.hardware import LEAST_CAPABILITY
from ..settings.fields import SHORT
from .config import PrecisionConfig

FORMAT_SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "trt": ".plan", "rtx": ".plan"}
FORMATS = tuple(FORMAT_SUFFIXES)
# A further format of `export`: a Triton repository, with artifacts and everything else that the server needs.
REPOSITORY = "triton"
# Formats that a builder creates from an ONNX graph.
ENGINE_FORMATS = ("trt", "rtx")
FLAGS = {"float32": "float32 (no flag)", **{name: f"--{SHORT.get(name, name)}" for name in (*HALF, *QUANTIZED)}}


@dataclass(frozen=True)
class Support:
    """What a format supports on a target: `precisions`, and `rests`, the precisions of everything that int8 and float8
    do not cover."""

    runtime: str
    precisions: tuple[str, ...]
    rests: tuple[str, ...]


_TENSORRT = ("float32", "float16", "bfloat16", "int8", "float8")
SUPPORT = {
    ("onnx", "cpu"): Support("ONNX Runtime on a CPU", ("float32", "float16", "int8"), ("float32",)),
    ("onnx", "tensorrt"): Support("TensorRT", _TENSORRT, ("float16", "float32")),
    ("trt", "tensorrt"): Support("TensorRT", _TENSORRT, ("float16", "float32")),
    ("rtx", "tensorrt"): Support("TensorRT for RTX", _TENSORRT, ("float16", "float32")),
    ("openvino", "cpu"): Support("OpenVINO on a CPU", ("float32", "bfloat16", "int8"), ("bfloat16", "float32")),
}


@dataclass(frozen=True)
class ResolvedTarget:
    """A precision request with every field set. `io` is the data type of float images and logits."""

    format: str
    target: str
    precision: str
    rest: str
    io: str = "float32"


def resolve(format: str, config: PrecisionConfig, cpu_has_bfloat16: bool,
            capabilities: Sequence[str] = ()) -> ResolvedTarget:
    """Chooses the target of a format and the precision of the rest. `capabilities` are the compute capabilities of the
    GPUs that the artifact will run on, like "8.9".

    The target of ONNX is a CPU, unless only TensorRT supports the precision or `config.target` is TensorRT.

    Raises:
        ConfigError: the target does not support the request; the message names the alternatives.
    """
    if format not in FORMATS:
        raise ConfigError(f"Unknown format {format!r}.{did_you_mean(format, (*FORMATS, REPOSITORY))}")
    targets = [target for known, target in SUPPORT if known == format]
    able = [target for target in targets if config.precision in SUPPORT[format, target].precisions]
    target = config.target or next(iter(able or targets))
    if target not in targets:
        raise ConfigError(f"--format {format} cannot be made for {target}; leave out --target.")
    support = SUPPORT[format, target]
    if config.precision not in support.precisions:
        raise ConfigError(f"{support.runtime} has no {config.precision}; {_alternatives(support)}"
                          + (", or pass --target tensorrt." if target != "tensorrt" and format == "onnx" else "."))
    _check_hardware(config, target, cpu_has_bfloat16)
    _check_gpus(config, target, support, capabilities)
    rests = [rest for rest in support.rests if rest != "bfloat16" or cpu_has_bfloat16]
    rest = config.rest or rests[0]
    if config.rest and config.precision not in QUANTIZED:
        raise ConfigError("--rest applies only to --int8 and --fp8; leave it out.")
    if rest not in rests:
        raise ConfigError(f"With {config.precision}, the rest cannot be {rest} for {support.runtime} here; choose one "
                          f"of: {', '.join(rests)}.")
    if config.io == "float16" and "float16" not in (config.precision, rest if config.precision in QUANTIZED else None):
        raise ConfigError("float16 images and logits need float16 inside; add --fp16, or leave out --io.")
    return ResolvedTarget(format, target, config.precision, rest, config.io)


def _check_hardware(config: PrecisionConfig, target: str, cpu_has_bfloat16: bool) -> None:
    if target == "cpu" and config.precision == "bfloat16" and not cpu_has_bfloat16:
        raise ConfigError("This CPU does not compute in bfloat16; use --int8, or float32 (no flag).")


def _check_gpus(config: PrecisionConfig, target: str, support: Support, capabilities: Sequence[str]) -> None:
    if target == "cpu" and capabilities:
        raise ConfigError("--compute-capability applies only to a GPU; add --target tensorrt, or leave it out.")
    least = LEAST_CAPABILITY[config.precision]
    for capability in map(float, capabilities):
        if capability < least:
            able = [FLAGS[p] for p in support.precisions if LEAST_CAPABILITY[p] <= capability]
            raise ConfigError(f"{config.precision} needs a GPU of compute capability {least}, not {capability}; "
                              + (f"choose one of: {', '.join(able)}." if able else "TensorRT does not run there."))


def _alternatives(support: Support) -> str:
    return "use " + ", ".join(FLAGS[p] for p in support.precisions)
