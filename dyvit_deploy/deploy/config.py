"""What to make of a checkpoint: which file, in which precision, and how an engine of it is built."""
from __future__ import annotations

from dataclasses import dataclass

from ..calibration.config import CalibrationConfig, PrecisionConfig
from ..calibration.targets import FORMATS, REPOSITORY
from ..engine.config import BuildConfig
from ..export.config import ExportConfig
from ..settings.fields import JsonConfig, option


@dataclass(frozen=True)
class DeployConfig(JsonConfig):
    """The file to make, and the settings of each stage on the way. `timed` compares the speed of a lower precision
    with float32's."""

    format: str = option("onnx", "What to write; triton is a model repository.", choices=(*FORMATS, REPOSITORY))
    export: ExportConfig = ExportConfig()
    precision: PrecisionConfig = PrecisionConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    build: BuildConfig = BuildConfig()
    timed: bool = True
