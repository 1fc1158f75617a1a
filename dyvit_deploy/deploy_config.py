"""What to make of a checkpoint: which file, in which precision, and how an engine of it is built."""
from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from .config import ALIASES, HALF, METHODS, PRECISIONS, TARGETS, JsonConfig, check_choice
from .errors import ConfigError

LEVELS = range(6)                           # builder optimization levels of TensorRT
INPUTS = ("float32", "uint8")
GATHERS = ("auto", "elements", "nd")
# Exact rewrites of the inference graph, see model.forms; "all" leaves out every one.
FORMS = ("split-predictor", "one-gather", "read-block", "fold-scale", "fold-batch-norm")
FASTER_GATHER = {"cpu": "nd", "tensorrt": "elements"}  # per target; measured on CPUs only


@dataclass(frozen=True)
class ExportConfig(JsonConfig):
    """What the exported graph offers besides `logits`, and how it is written.

    `with_tokens` adds `kept_0` .. `kept_{S-1}`; `input` "uint8" takes raw RGB [B, height, width, 3]
    and normalises inside the graph; `allow_large_k` lifts TensorRT's limit of 3840 on TopK. `without` names FORMS
    to leave out; `gather` is the operator that copies kept rows, "auto" the one that is faster on the target.
    """

    with_tokens: bool = False
    input: str = "float32"
    allow_large_k: bool = False
    opset: int = 20
    without: tuple[str, ...] = ()
    gather: str = "auto"

    def __post_init__(self) -> None:
        check_choice("input type", self.input, INPUTS)
        check_choice("gather", self.gather, GATHERS)
        object.__setattr__(self, "without", tuple(self.without))
        for name in self.without:
            check_choice("rewrite", name, (*FORMS, "all"))

    @property
    def left_out(self) -> tuple[str, ...]:
        """The FORMS that are not applied."""
        return FORMS if "all" in self.without else self.without

    def for_target(self, target: str) -> ExportConfig:
        """With the gather that is faster there, where it is left open."""
        return dataclasses.replace(self, gather=FASTER_GATHER[target]) if self.gather == "auto" else self


@dataclass(frozen=True)
class PrecisionConfig(JsonConfig):
    """What the products are computed in, for which runtime, and what is demanded of the result.

    `target` is "cpu" or "tensorrt", None the one that fits; `rest` is the precision of what int8 and
    float8 leave out, None the fastest that the target has; `io` "float16" makes float input and logits
    float16. `gate` compares the result with float32 and rejects it beyond tolerance; `max_drop` keeps the
    costliest layers in higher precision until top-1 falls by at most that many points.
    """

    precision: str = "float32"
    target: str | None = None
    rest: str | None = None
    io: str = "float32"
    gate: bool = True
    max_drop: float | None = None

    def __post_init__(self) -> None:
        for name, choices in (("precision", PRECISIONS), ("target", TARGETS), ("rest", ("float32", *HALF)),
                              ("io", ("float32", "float16"))):
            value = ALIASES.get(getattr(self, name), getattr(self, name))
            object.__setattr__(self, name, value)
            if value is not None:
                check_choice(name, value, choices)
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise ConfigError(f"A drop is given in points from 0 to 100, not {self.max_drop}.")


@dataclass(frozen=True)
class CalibrationConfig(JsonConfig):
    """On what and how to calibrate.

    `data` is a folder or data set, `ranges` a file to reuse; at most `images` images are taken. `method`
    sets thresholds; `attention` also quantizes the products inside attention. `allow_noise` permits images
    without any structure, and none at all.
    """

    data: str | None = None
    ranges: str | None = None
    images: int = 64
    method: str = "mse"
    attention: bool = False
    allow_noise: bool = False

    def __post_init__(self) -> None:
        check_choice("calibration method", self.method, METHODS)
        if self.images < 1:
            raise ConfigError(f"The number of calibration images must be at least 1, not {self.images}.")


@dataclass(frozen=True)
class BatchProfile(JsonConfig):
    """One optimization profile: the batch sizes that an engine accepts, and the one that it is tuned for."""

    min: int
    opt: int
    max: int
    name: str = "default"

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ConfigError(f"A profile is MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX, not {self}.")

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    @classmethod
    def parse(cls, text: str, name: str = "default") -> BatchProfile:
        """`1:8:32`, or `8` for that batch size only.

        Raises:
            ConfigError: anything else.
        """
        if not re.fullmatch(r"\d{1,9}(:\d{1,9}:\d{1,9})?", text):
            raise ConfigError(f"Batch sizes are written MIN:OPT:MAX, like 1:8:32, or as one number, not {text!r}.")
        sizes = [int(part) for part in text.split(":")]
        return cls(sizes[0], sizes[len(sizes) // 2], sizes[-1], name)

    @classmethod
    def parse_named(cls, text: str) -> BatchProfile:
        """`latency=1:1:1`; see `parse`."""
        name, equals, sizes = text.partition("=")
        if not name or not equals:
            raise ConfigError(f"A profile is written NAME=MIN:OPT:MAX, like latency=1:1:1, not {text!r}.")
        return cls.parse(sizes, name)


def parse_capability(text: str) -> str:
    """A compute capability as "8.9", from `8.9` or `89`.

    Raises:
        ConfigError: none that a GPU has.
    """
    match = re.fullmatch(r"(\d{1,2})\.(\d)|(\d{1,2})(\d)", text.strip())
    if match is None or not 5 <= int(match[1] or match[3]) < 20:
        raise ConfigError(f"A compute capability is written like 8.9 or 89, not {text!r}.")
    return f"{match[1] or match[3]}.{match[2] or match[4]}"


@dataclass(frozen=True)
class BuildConfig(JsonConfig):
    """How an engine is built; None leaves a choice to the builder.

    `workspace_mib` bounds scratch memory on the GPU; `timing_cache` is a file that builds share;
    `optimization_level` is 0 (fast build) to 5 (fast engine). `version_compatible` and
    `hardware_compatible` (Ampere and later) trade speed for engines that load in more places.
    `refittable` lets weights be exchanged for others; `strip_weights` leaves them out of the plan, and takes only the
    same ones back unless it is also `refittable`, as every such engine of TensorRT for RTX is.
    `compute_capabilities` are the GPUs that it must run on, like "8.9"; empty is the one at hand for
    TensorRT, and its default set for TensorRT for RTX.
    `tf32` lets float32 products round their inputs to 10 bits of mantissa. `allow_precision_fallback` accepts
    matrix products that the builder computes in a wider type than the graph asks for.
    """

    profiles: tuple[BatchProfile, ...] = (BatchProfile(1, 8, 32),)
    workspace_mib: float | None = None
    timing_cache: str | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    refittable: bool = False
    strip_weights: bool = False
    compute_capabilities: tuple[str, ...] = ()
    tf32: bool = False
    allow_precision_fallback: bool = False

    def __post_init__(self) -> None:
        profiles = tuple(BatchProfile.from_dict(p) if isinstance(p, Mapping) else p for p in self.profiles)
        object.__setattr__(self, "profiles", profiles)
        names = [profile.name for profile in profiles]
        if not names or len(set(names)) < len(names):
            raise ConfigError("An engine needs at least one profile, each with a name of its own, not "
                              f"{', '.join(names) or 'none'}.")
        if self.workspace_mib is not None and not self.workspace_mib > 0:
            raise ConfigError(f"The workspace must be more than 0 MiB, not {self.workspace_mib}.")
        if self.optimization_level is not None and self.optimization_level not in LEVELS:
            raise ConfigError(f"The builder's optimization level is 0 to 5, not {self.optimization_level}.")
        capabilities = tuple(dict.fromkeys(parse_capability(text) for text in self.compute_capabilities))
        object.__setattr__(self, "compute_capabilities", capabilities)

    def flags(self) -> list[str]:
        """These settings as the command line takes them."""
        flags = [f"--batch {p}" if i == 0 and p.name == "default" else f"--profile {shlex.quote(f'{p.name}={p}')}"
                 for i, p in enumerate(self.profiles)] if self.profiles != BuildConfig().profiles else []
        for name, option in (("workspace_mib", "--workspace"), ("timing_cache", "--timing-cache"),
                             ("optimization_level", "--opt-level")):
            value = getattr(self, name)
            text = f"{value:.15g}" if isinstance(value, float) else shlex.quote(str(value))
            flags += [] if value is None else [f"{option} {text}"]
        flags += [f"--{name.replace('_', '-')}" for name in
                  ("version_compatible", "hardware_compatible", "refittable", "strip_weights", "tf32",
                   "allow_precision_fallback") if getattr(self, name)]
        if self.compute_capabilities:
            flags.append(f"--compute-capability {','.join(self.compute_capabilities)}")
        return flags


@dataclass(frozen=True)
class ServingConfig(JsonConfig):
    """How a model stands in a Triton repository.

    `name` None is the model's own; `max_batch` None is the most that an engine runs, and 64 for graphs. `instances`
    run at once; `version` is the number of the version folder. `engine` is a plan to serve, None for a graph exported
    as `graph`, "onnx" or "openvino".
    """

    name: str | None = None
    max_batch: int | None = None
    instances: int = 1
    version: int = 1
    engine: str | None = None
    graph: str = "onnx"

    def __post_init__(self) -> None:
        check_choice("graph to serve", self.graph, ("onnx", "openvino"))
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,127}", self.name):
            raise ConfigError(f"A model of Triton is named with letters, digits, '_', '-' and '.', not {self.name!r}.")
        for field, most in (("max_batch", 4096), ("instances", 64), ("version", 10**9)):
            value = getattr(self, field)
            if value is not None and not 1 <= value <= most:
                option = {"version": "model-version"}.get(field, field.replace("_", "-"))
                raise ConfigError(f"--{option} is a number from 1 to {most}, not {value}.")

    def require_unset(self) -> None:
        """Raises ConfigError when anything is set: the other formats know none of it."""
        if self != ServingConfig():
            raise ConfigError("--engine, --onnx, --openvino, --name, --max-batch, --instances and --model-version are "
                              "for a Triton repository; add --format triton.")


@dataclass(frozen=True)
class DeployConfig(JsonConfig):
    """What to make: `format` is one of `targets.FORMATS`; the interface, precision and calibration of the graph,
    and how an engine is built of it. `timed` compares the speed of a lower precision with float32's."""

    format: str = "onnx"
    export: ExportConfig = ExportConfig()
    precision: PrecisionConfig = PrecisionConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    build: BuildConfig = BuildConfig()
    timed: bool = True

    def __post_init__(self) -> None:
        parts: dict[str, type[JsonConfig]] = {
            "export": ExportConfig, "precision": PrecisionConfig, "calibration": CalibrationConfig,
            "build": BuildConfig}
        for name, kind in parts.items():
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, kind.from_dict(value))
