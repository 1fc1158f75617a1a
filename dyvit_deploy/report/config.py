"""What goes on the page of an artifact folder."""
from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError
from ..settings.fields import JsonConfig, option

# Images that fit on a page.
MOST = 100


@dataclass(frozen=True)
class ReportConfig(JsonConfig):
    """What goes on the page. `data` None takes the digit scenes for models that were trained on them."""

    data: str | None = option(None, "Images for the galleries: a folder, or digits; default: digits for models of "
                                    "them.")
    images: int = option(10, "At most this many, 100 or fewer; 0: none.")
    labels: str | None = option(None, "Names of the models' classes: one per line, JSON, or ImageNet's own lists.",
                                metavar="FILE")
    run: bool = option(True, "Run no artifact: no galleries.", "--no-run")
    max_drop: float = option(1.0, "Points of top-1 that an artifact may lose against its checkpoint and the dense "
                                  "model.", metavar="POINTS")

    def __post_init__(self) -> None:
        if self.images < 0:
            raise ConfigError(f"The number of images must be 0 or more, not {self.images}.")
        if self.images > MOST:
            raise ConfigError(f"At most {MOST} images fit on a page, not {self.images}.")
        if not 0 <= self.max_drop <= 100:
            raise ConfigError(f"Top-1 may fall by 0 to 100 points, not {self.max_drop}.")
