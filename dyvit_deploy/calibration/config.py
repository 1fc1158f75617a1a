"""Which precision, and on what it is calibrated."""
from __future__ import annotations

from dataclasses import dataclass

from ..config import ALIASES, HALF, METHODS, PRECISIONS, TARGETS, JsonConfig, check_choice
from ..errors import ConfigError


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
