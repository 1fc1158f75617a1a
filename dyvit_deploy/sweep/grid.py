"""What is swept: the settings, and the combinations that they span."""
from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from ..calibration.config import CalibrationConfig, PrecisionConfig
from ..calibration.targets import ENGINE_FORMATS, FORMAT_SUFFIXES, FORMATS, SUPPORT
from ..config import PRECISIONS, QUANTIZED, LoadConfig, device_option
from ..deploy.config import DeployConfig
from ..engine.config import BatchProfile, BuildConfig
from ..errors import BackendError, ConfigError
from ..export.config import ExportConfig
from ..machine.hardware import gpu
from ..settings.fields import SHORT, JsonConfig, option

T = TypeVar("T", bound=JsonConfig)


@dataclass(frozen=True)
class SweepConfig(JsonConfig):
    """The grid, and how its artifacts are measured.

    `data` are the images to compare on, at most `images` of its test split (None: all); if they have labels, top-1 is
    measured. Calibration uses `data` too, unless `calibration` names other images. Without `data`, outputs are compared
    on noise.
    """

    keep_ratios: tuple[float, ...] = option((1.0, 0.9, 0.7, 0.5), "Each R keeps R, R**2, ...; default: {default}.")
    precisions: tuple[str, ...] = option(("float32", "int8"), "Of {choices}; default: {default}.",
                                         choices=[SHORT.get(name, name) for name in PRECISIONS])
    backends: tuple[str, ...] = option(("onnx", "openvino"), "Of {choices}; default: {default}.", choices=FORMATS)
    batches: tuple[int, ...] = option((1, 8), "Batch sizes; default: {default}.", "--batch")
    data: str | None = option(None, "Images to compare on, and to calibrate on without --calib: digits, a folder; "
                                    "labels give top-1.")
    images: int | None = option(None, "At most this many.")
    class_map: str | None = option(None, "The model's class for each class folder, as for dyvit eval.", metavar="FILE")
    seconds: float = option(10.0, "Time limit per artifact and batch size; default: {default}.")
    threads: int = option(0, "Threads of ONNX Runtime and OpenVINO; default: all cores.")
    device: str | None = device_option()
    calibration: CalibrationConfig = CalibrationConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data and not self.calibration.data:
            object.__setattr__(self, "calibration", dataclasses.replace(self.calibration, data=self.data))
        for name in ("keep_ratios", "precisions", "backends", "batches"):
            values = getattr(self, name)
            if not values:
                raise ConfigError(f"A sweep needs at least one of its {name.replace('_', ' ')}.")
            object.__setattr__(self, name, tuple(dict.fromkeys(values)))
        for ratio in self.keep_ratios:
            if not 0 < ratio <= 1:
                raise ConfigError(f"Keep ratio {ratio} must be above 0 and at most 1 (1 is the dense model).")
        if min(self.batches) < 1:
            raise ConfigError(f"Batch sizes {list(self.batches)} must be at least 1.")
        if self.images is not None and self.images < 1:
            raise ConfigError(f"At least 1 image is needed, not {self.images}.")
        if not 0 < self.seconds < float("inf"):
            raise ConfigError(f"The time limit must be positive, not {self.seconds} s.")
        if self.threads < 0:
            raise ConfigError(f"The number of threads must be 0 (all cores) or more, not {self.threads}.")

    @property
    def build(self) -> BuildConfig:
        """Engines take every batch size of the sweep."""
        usual = BuildConfig().profiles[0]
        return BuildConfig((BatchProfile(usual.min, usual.opt, max(usual.max, *self.batches)),))

    def candidates(self) -> list[GridPoint]:
        """Every combination, in the order given."""
        return [GridPoint(ratio, precision, backend) for ratio in self.keep_ratios for precision in self.precisions
                for backend in self.backends]


class GridPoint(NamedTuple):
    """One artifact that might be made."""

    keep_ratio: float
    precision: str
    backend: str

    @property
    def file(self) -> str:
        """Its file name, which says what it is."""
        return f"keep{self.keep_ratio!r}-{short(self.precision)}-{self.backend}{FORMAT_SUFFIXES[self.backend]}"

    def deploy(self, config: SweepConfig) -> DeployConfig:
        """How it is exported. The sweep times it itself, beside the others."""
        plain = self.precision == "float32"
        return DeployConfig(self.backend, ExportConfig(with_tokens=True), PrecisionConfig(self.precision),
                            CalibrationConfig() if plain else config.calibration,
                            config.build if self.backend in ENGINE_FORMATS else BuildConfig(), timed=False)


def short(precision: str) -> str:
    """`fp32` for float32, in file names and tables; int8 is short already."""
    return SHORT.get(precision, precision)


def at_ratio(load: LoadConfig, ratio: float) -> LoadConfig:
    """`load` with this keep ratio."""
    return dataclasses.replace(load, keep=dataclasses.replace(load.keep, ratio=ratio))


def check_runnable(candidate: GridPoint, config: SweepConfig = SweepConfig()) -> None:
    """Refuses what a backend or this machine does not have, or what these settings do not allow, before any work.

    Raises:
        BackendError: with the reason.
    """
    # An ONNX graph could be for TensorRT too, but what is swept must run, and `trt` and `rtx` are backends themselves.
    target = "tensorrt" if candidate.backend in ENGINE_FORMATS else "cpu"
    support = SUPPORT[candidate.backend, target]
    if candidate.precision not in support.precisions:
        has = ", ".join(map(short, support.precisions))
        raise BackendError(f"{support.runtime} has no {short(candidate.precision)}; it has {has}.")
    if candidate.precision in QUANTIZED and not (config.calibration.data or config.calibration.allow_noise):
        raise BackendError(f"{short(candidate.precision)} is calibrated on images; pass --data or --calib FOLDER.")
    if candidate.backend in ENGINE_FORMATS and gpu() is None:
        raise BackendError(f"Engines of {support.runtime} are timed on a GPU, and none works here; see dyvit doctor.")


def filled(now: T, before: T) -> T:
    """`now`, with the value of `before` in every field that has its default; nested settings field by field."""
    values = {}
    for field in dataclasses.fields(now):
        new, old = getattr(now, field.name), getattr(before, field.name)
        if isinstance(new, JsonConfig):
            values[field.name] = filled(new, old)
        elif new == field.default:
            values[field.name] = old
    return dataclasses.replace(now, **values)


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of the settings that differ, those of nested ones by themselves."""
    names: list[str] = []
    for name, value in now.items():
        if isinstance(value, Mapping) and isinstance(before.get(name), Mapping):
            names += changed(before[name], value)
        elif before.get(name) != value:
            names.append(name)
    return names
