"""Which precision, and on what it is calibrated."""
from __future__ import annotations

from dataclasses import dataclass

from ..config import METHODS, PRECISIONS, TARGETS
from ..errors import ConfigError
from ..settings.fields import JsonConfig, option, switches


@dataclass(frozen=True)
class PrecisionConfig(JsonConfig):
    """The precision of the products, the runtime that it is for, and how the result is checked.

    `rest` None chooses the fastest precision that the target supports. `gate` compares the result with the checkpoint
    and rejects it if it exceeds the tolerance.
    """

    precision: str = switches("float32", PRECISIONS, {
        "--fp16": "float16, scores excepted.", "--bf16": "bfloat16, scores excepted.",
        "--int8": "int8 convolutions and linear layers; needs --calib or --ranges.",
        "--fp8": "float8 (e4m3) likewise, for TensorRT."}, hint="; --rest is for what int8 leaves out")
    target: str | None = option(None, "What runs the ONNX file; default: a CPU if it can.", choices=TARGETS)
    rest: str | None = option(None, "Precision of what --int8 and --fp8 leave out.", choices=("fp32", "fp16", "bf16"))
    io: str = option("float32", "Images and logits.", choices=("fp32", "fp16"))
    gate: bool = option(True, "Do not compare the result with the checkpoint.", "--no-gate")
    max_drop: float | None = option(None, "Keep costly layers in higher precision until top-1 falls by at most this.",
                                    metavar="POINTS")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise ConfigError(f"A drop is given in points from 0 to 100, not {self.max_drop}.")


@dataclass(frozen=True)
class CalibrationConfig(JsonConfig):
    """On what and how to calibrate."""

    data: str | None = option(None, "Real images: a folder, or digits.", "--calib")
    ranges: str | None = option(None, "Ranges of dyvit calibrate, instead of calibrating.")
    images: int = option(64, "At most this many.", "--calib-images")
    method: str = option("mse", "What sets the thresholds of int8.", choices=METHODS)
    attention: bool = option(False, "Also the products inside attention.", "--quantize-attention")
    allow_noise: bool = option(False, "Permit noise, to try things out.", "--allow-random-calib")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < 1:
            raise ConfigError(f"The number of calibration images must be at least 1, not {self.images}.")
