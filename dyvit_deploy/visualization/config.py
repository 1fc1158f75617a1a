"""Settings and report of `dyvit visualize`."""
from __future__ import annotations

from dataclasses import dataclass

from ..config import device_option, orient_option
from ..errors import ConfigError
from ..settings.fields import JsonConfig, option

STYLES = ("fade", "outline", "scores")
STILLS, ANIMATIONS = ("png", "svg"), ("gif", "webp")
# Images drawn of a data set by default.
DATA_IMAGES = 64


@dataclass(frozen=True)
class VisualizeConfig(JsonConfig):
    """What to draw, and of which images. `images` None takes every file, DATA_IMAGES of a data set, and all of it for a
    heat map; `diff` takes two artifacts."""

    data: str | None = option(None, "A data set instead of files: digits, wds/PATH or hfds/NAME.")
    split: str = option("test", "Part of the data set: train, val or test.")
    images: int | None = option(None, "At most this many, of files evenly spread; default: all files, 64 of a data "
                                      "set.")
    style: str = option("fade", "How patches look; scores, for checkpoints only, colours kept patches.",
                        choices=STYLES)
    format: str = option("png", "gif and webp move; default: png, with --animate gif.",
                         choices=(*STILLS, *ANIMATIONS))
    labels: str | None = option(None, "Names of the model's classes: one per line, JSON, or ImageNet's own lists.",
                                metavar="FILE")
    heatmap: bool = option(False, "Draw how often each patch is kept, over all images.")
    diff: bool = option(False, "Draw the images of which two artifacts keep different patches.")
    batch: int = option(32, "Images per run.")
    orient: bool = orient_option()
    device: str | None = device_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("images", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} must be at least 1, not {value}.")
        if self.heatmap and self.diff:
            raise ConfigError("--heatmap shows one artifact, --diff two; choose one of them.")
        if self.format in ANIMATIONS and (self.heatmap or self.diff):
            raise ConfigError("Only the images of one artifact are animated; write --heatmap and --diff as png or svg.")
        if self.style != "fade" and (self.heatmap or self.diff):
            raise ConfigError("--style is for the images of one artifact; leave it out with --heatmap and --diff.")

    def check_animated(self, animate: bool) -> None:
        """Raises ConfigError if --animate was given together with the format of a still image."""
        if animate and self.format not in ANIMATIONS:
            raise ConfigError(f"--animate writes {' or '.join(ANIMATIONS)}, not {self.format}; leave out --format.")

    @property
    def still(self) -> str:
        """The format of the figures that are not animated."""
        return self.format if self.format in STILLS else STILLS[0]
