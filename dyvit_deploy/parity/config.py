"""How to compare two artifacts."""
from __future__ import annotations

from dataclasses import dataclass

from ..config import device_option
from ..errors import ConfigError
from ..settings.fields import JsonConfig, option
from .tolerance import PrecisionTolerance, Tolerance


@dataclass(frozen=True)
class CheckConfig(JsonConfig):
    """How to compare. `tolerance` None is that of the lower precision of the two; `error` replaces its bound on
    logits."""

    images: int = option(64, "At most this many.")
    batches: tuple[int, ...] = option((1, 8), "Batch sizes of the candidate.", "--batch")
    tolerance: Tolerance | PrecisionTolerance | None = None
    error: float | None = option(None, "Largest logit error, in place of the precision's own bound.", "--tolerance")
    device: str | None = device_option()

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1:
            raise ConfigError(f"Batch sizes {list(self.batches)} must be at least 1.")
