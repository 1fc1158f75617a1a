"""TensorRT and TensorRT for RTX: two libraries with one interface; their differences are data.

`--format trt` is TensorRT, `--format rtx` is TensorRT for RTX; neither is a fallback for the other.
Engines are not built with Polygraphy: it supports only one of the two per process, and it uses names that TensorRT 11
removed.
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
# Compute capabilities on which an engine of TensorRT for RTX runs, unless built for certain GPUs (its documentation).
PORTABLE = "8.0, 8.6, 8.9, 12.0 or later"


@dataclass(frozen=True)
class LibrarySpec:
    """One library.

    `magic` are the first bytes of its plans, None if not known. `get_it` says how to install it, `least` is the oldest
    supported version.
    `lacks` says why a setting of BuildConfig does not exist in this library, `ignored` why one has no effect.
    `needs_gpu` are settings that require a GPU at build time. `implies` are settings that switch on another one.
    `runs_on` names the GPUs that the library supports; empty means all.
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
        # Documentation of 11.3, "Refitting an Engine": an engine built with REFIT can lose the bias of a product, even
        # if it is never refitted.
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
        # Documentation, "Refitting Engines": an engine without weights is built with STRIP_PLAN and REFIT.
        implies={"strip_weights": "refittable"},
        # Keep scores are float32 products. 9.0 to 12.0 are in none of its support matrices.
        unsupported=((0.0, 8.0, "has no float32 products for"), (9.0, 12.0, "does not support"))),
}


def library_spec(format: str) -> LibrarySpec:
    """Raises ConfigError when `format` is neither "trt" nor "rtx"."""
    if format not in LIBRARY_SPECS:
        raise ConfigError(f"Unknown engine format {format!r}.{did_you_mean(format, LIBRARY_SPECS)}")
    return LIBRARY_SPECS[format]


def effective(spec: LibrarySpec, config: BuildConfig) -> BuildConfig:
    """`config` with the settings that are implied by others in that library."""
    implied: dict[str, Any] = {target: True for name, target in spec.implies.items() if getattr(config, name)}
    return dataclasses.replace(config, **implied)


def gpu_problem(spec: LibrarySpec, device: Gpu) -> str | None:
    """Why the library cannot run any engine on this GPU; None if it can."""
    capability = float(device.compute_capability)
    return next((f"{spec.name} {why} {device.name} (compute capability {device.compute_capability})"
                 for least, above, why in spec.unsupported if least <= capability < above), None)


def refit_doubt(format: str, version: str, config: BuildConfig) -> str | None:
    """Why an engine of that library, version and settings must be compared with its graph; None if it need not."""
    spec, numbers = library_spec(format), parse_version(version)
    if config.refittable and any(numbers[:len(wrong)] == wrong for wrong in spec.wrong_refit):
        return (f"{spec.name} {version} can drop the bias of a matrix product in an engine that is built with "
                "--refittable")
    return None


def check_settings(spec: LibrarySpec, config: BuildConfig, gpu: bool) -> None:
    """Raises ConfigError if the library does not support a setting of `config`; `gpu` says whether there is a GPU."""
    default = BuildConfig()
    if spec.format == "rtx" and "7.5" in config.compute_capabilities:
        raise ConfigError("GPUs of compute capability 7.5 have no float32 matrix products in TensorRT for RTX, and "
                          "keep scores are float32; leave 7.5 out of --compute-capability.")
    changed = [name for name in (*spec.lacks, *spec.needs_gpu) if getattr(config, name) != getattr(default, name)]
    for name in changed:
        option = f"--{name.replace('_', '-').replace('capabilities', 'capability')}"
        if name in spec.lacks:
            raise ConfigError(f"{spec.name} has no {option}: {spec.lacks[name]}; leave it out.")
        if not gpu:
            raise ConfigError(f"{spec.name} needs a GPU to build with {option}, and none works here; leave it out, "
                              "or build on the machine with the GPU.")


class BuilderLibrary:
    """An imported library: `trt` is the module, `logger` collects its messages."""

    def __init__(self, spec: LibrarySpec, module: Any) -> None:
        self.spec, self.trt = spec, module
        self.version: str = module.__version__
        self.logger = _collector(module)
        self.logger.clear()


def open_library(format: str) -> BuilderLibrary:
    """The library behind `format`.

    Raises:
        MissingDependency: it is not installed; the message says how to install it.
        BackendError: it is too old, or cannot be imported.
    """
    spec = library_spec(format)
    try:
        module = require(spec.module, spec.extra)
        version = parse_version(module.__version__)
    except MissingDependency as error:
        alternative = next(candidate for candidate in LIBRARY_SPECS.values() if candidate is not spec)
        raise MissingDependency(f"{spec.name} is not installed. Install it with: {spec.get_it}; or choose --format "
                                f"{alternative.format} ({alternative.name}{alternative.runs_on}).") from error
    # The module raises any of these if, for example, the wheel lacks the shared libraries.
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise BackendError(f"{spec.name} is installed but does not start ({reason(error)}); install it again: "
                           f"{spec.get_it}.") from error
    if version < spec.least:
        least = ".".join(map(str, spec.least))
        raise BackendError(f"{spec.name} {module.__version__} is too old; install {least} or later.")
    return BuilderLibrary(spec, module)


def parse_version(text: str) -> Version:
    """The leading numbers of a version: (10, 12, 0, 36)."""
    return tuple(int(number[:9]) for number in re.findall(r"\d+", text)[:4])


@functools.cache
def _collector(trt: Any) -> Any:
    """A logger that stores the library's messages instead of printing them.

    There is one per library, because TensorRT itself keeps using the first logger it is given. `layers` is the list of
    the built engine's layers, which the builder writes to its verbose log.
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


# The headings of the list of layers: of TensorRT for RTX and of TensorRT.
LAYERS = ("Layers:", "Engine Layer Information:")
