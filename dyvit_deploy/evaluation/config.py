"""On what to evaluate an artifact."""
from __future__ import annotations

from dataclasses import dataclass

from ..config import device_option
from ..settings.fields import JsonConfig, option


@dataclass(frozen=True)
class EvalConfig(JsonConfig):
    """On what to evaluate; `images` None is the whole split."""

    split: str = option("test", "train, val or test.")
    images: int | None = option(None, "At most this many.", least=1)
    batch: int = option(32, "Images per run.", least=1)
    device: str | None = device_option()
