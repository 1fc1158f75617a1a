"""What to make of a checkpoint: which file, in which precision, and how an engine of it is built."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..calibration.config import CalibrationConfig, PrecisionConfig
from ..config import JsonConfig
from ..engine.config import BuildConfig
from ..export.config import ExportConfig


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
