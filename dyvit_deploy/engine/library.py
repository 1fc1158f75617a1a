"""TensorRT and TensorRT for RTX: two libraries of one interface, and what they do not share, as data.

`--format trt` is TensorRT, `--format rtx` is TensorRT for RTX; neither ever stands in for the other.
Polygraphy is not used to build: it serves one of the two per process, and it asks the library for names
that TensorRT 11 removed.
"""
from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import BackendError, ConfigError, MissingDependency, did_you_mean, reason
from ..machine.hardware import Gpu
from ..optional import require
from .config import BuildConfig

Version = tuple[int, ...]
# Where an engine of TensorRT for RTX runs that was built for no GPU in particular (its documentation).
PORTABLE = "8.0, 8.6, 8.9, 12.0 or later"


@dataclass(frozen=True)
class LibrarySpec:
    """One library. `magic` are the first bytes of its plans, None where that was never seen.

    `lacks` says why a setting of BuildConfig does not exist there; `ignored` why one has no effect;
    `needs_gpu` are settings that it cannot build without a GPU; `runs_on` says for which GPUs it
    is, where that is not all; `implies` are settings that switch on another one.
    `unsupported` are ranges of compute capabilities, from the first number to below the second, with what the
    library cannot do there. `wrong_refit` are versions, by their leading numbers, whose refittable engines can
    compute wrong results.
    """

    format: str
    module: str
    name: str
    extra: str
    get_it: str
    least: Version
    magic: bytes | None
    builds_without_gpu: bool
    lacks: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    needs_gpu: tuple[str, ...] = ()
    runs_on: str = ""
    implies: Mapping[str, str] = field(default_factory=dict)
    unsupported: tuple[tuple[float, float, str], ...] = ()
    wrong_refit: tuple[Version, ...] = ()


LIBRARY_SPECS = {
    "trt": LibrarySpec(
        "trt", "tensorrt", "TensorRT", "trt",
        "pip install 'dyvit-deploy[trt]', with NVIDIA's own package index, where full TensorRT comes from, as "
        "NVIDIA's installation guide says", (10, 12), None, False,
        lacks={"compute_capabilities": "TensorRT builds for the GPU at hand"},
        # Its documentation of 11.3, "Refitting an Engine": REFIT can drop the bias of a product, refitted or not.
        wrong_refit=((11, 3),)),
    "rtx": LibrarySpec(
        "rtx", "tensorrt_rtx", "TensorRT for RTX", "rtx", "pip install 'dyvit-deploy[rtx]'", (1, 7), b"vtrt", True,
        lacks={"version_compatible": "TensorRT for RTX has no lean runtime",
               "hardware_compatible": "its engines already run on several GPUs"},
        ignored={"timing_cache": "TensorRT for RTX times nothing while it builds, so a timing cache has no effect",
                 "optimization_level": "TensorRT for RTX compiles kernels when an engine first runs, so the level has "
                                       "little effect"},
        needs_gpu=("refittable", "strip_weights"),
        runs_on=f", for GPUs of compute capability {PORTABLE}",
        # Its documentation, "Refitting Engines": an engine without weights is built with STRIP_PLAN and REFIT.
        implies={"strip_weights": "refittable"},
        # 9.0 to 12.0 are in none of its support matrices; keep scores are float32 products.
        unsupported=((0.0, 8.0, "has no float32 products for"), (9.0, 12.0, "does not support"))),
}


def library_spec(format: str) -> LibrarySpec:
    """Raises ConfigError when `format` is neither "trt" nor "rtx"."""
    if format not in LIBRARY_SPECS:
        raise ConfigError(f"Unknown engine format {format!r}.{did_you_mean(format, LIBRARY_SPECS)}")
    return LIBRARY_SPECS[format]


def effective(spec: LibrarySpec, config: BuildConfig) -> BuildConfig:
    """`config` with the settings that others switch on in that library."""
    implied: dict[str, Any] = {other: True for name, other in spec.implies.items() if getattr(config, name)}
    return dataclasses.replace(config, **implied)


def gpu_problem(spec: LibrarySpec, found: Gpu) -> str | None:
    """Why engines of that library do not run on this GPU, whatever they were built for; None where they can."""
    capability = float(found.compute_capability)
    return next((f"{spec.name} {why} {found.name} (compute capability {found.compute_capability})"
                 for least, above, why in spec.unsupported if least <= capability < above), None)


def refit_doubt(format: str, version: str, config: BuildConfig) -> str | None:
    """Why an engine of that library, version and settings must be compared with its graph; None where there is no
    such reason."""
    spec, numbers = library_spec(format), parse_version(version)
    if config.refittable and any(numbers[:len(wrong)] == wrong for wrong in spec.wrong_refit):
        return (f"{spec.name} {version} can drop the bias of a matrix product in an engine that is built with "
                "--refittable")
    return None


def check_settings(spec: LibrarySpec, config: BuildConfig, gpu: bool) -> None:
    """Raises ConfigError when `spec` cannot build as `config` says, on a machine with or without a GPU."""
    default = BuildConfig()
    if spec.format == "rtx" and "7.5" in config.compute_capabilities:
        raise ConfigError("GPUs of compute capability 7.5 have no float32 matrix products in TensorRT for RTX, and "
                          "keep scores are float32; leave 7.5 out of --compute-capability.")
    asked = [name for name in (*spec.lacks, *spec.needs_gpu) if getattr(config, name) != getattr(default, name)]
    for name in asked:
        option = f"--{name.replace('_', '-').replace('capabilities', 'capability')}"
        if name in spec.lacks:
            raise ConfigError(f"{spec.name} has no {option}: {spec.lacks[name]}; leave it out.")
        if not gpu:
            raise ConfigError(f"{spec.name} needs a GPU to build with {option}, and none works here; leave it out, "
                              "or build on the machine with the GPU.")


class BuilderLibrary:
    """An opened library: `trt` is the module, `logger` collects what it says."""

    def __init__(self, spec: LibrarySpec, module: Any) -> None:
        self.spec, self.trt = spec, module
        self.version: str = module.__version__
        self.logger = _collector(module)
        self.logger.clear()


def open_library(format: str) -> BuilderLibrary:
    """The library behind `format`.

    Raises:
        MissingDependency: it is not installed; the message says where it comes from.
        BackendError: it is too old, or does not start.
    """
    spec = library_spec(format)
    try:
        module = require(spec.module, spec.extra)
        version = parse_version(module.__version__)
    except MissingDependency as error:
        other = next(f for f in LIBRARY_SPECS.values() if f is not spec)
        raise MissingDependency(f"{spec.name} is not installed. Install it with: {spec.get_it}; or choose "
                                f"--format {other.format} ({other.name}{other.runs_on}).") from error
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # a wheel without its libraries, say
        raise BackendError(f"{spec.name} is installed but does not start ({reason(error)}); install it again: "
                           f"{spec.get_it}.") from error
    if version < spec.least:
        least = ".".join(map(str, spec.least))
        raise BackendError(f"{spec.name} {module.__version__} is too old; install {least} or later.")
    return BuilderLibrary(spec, module)


def parse_version(text: str) -> Version:
    """The leading numbers of a version: (10, 12, 0, 36)."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:4])


@functools.cache
def _collector(trt: Any) -> Any:
    """A logger that keeps what the library says instead of printing it; one per library, because TensorRT
    itself keeps the first that it is given.

    `errors` and `warnings` are its messages; `layers` is the list of the built engine's layers, which the
    builder writes to its verbose log.
    """
    class Collector(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.clear()

        def clear(self) -> None:
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.layers: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(message)
            elif message.startswith(LAYERS):
                self.layers += message.splitlines()[1:]

    return Collector()


LAYERS = ("Layers:", "Engine Layer Information:")  # how the list begins: TensorRT for RTX, TensorRT
