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
    class_map: str | None = option(None, "The model's class for each class folder: lines like FOLDER 207, JSON, or "
                                         "ImageNet's own list. Top-1 is over all classes of the model.",
                                   metavar="FILE")
    device: str | None = device_option()
