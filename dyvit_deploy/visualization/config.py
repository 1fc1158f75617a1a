"""Settings and report of `dyvit visualize`."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..config import check_choice
from ..errors import ConfigError
from ..evaluation.evaluate import KeepMap

STYLES = ("fade", "outline", "scores")
STILLS, ANIMATIONS = ("png", "svg"), ("gif", "webp")
# Images drawn of a data set by default.
DATA_IMAGES = 64


@dataclass(frozen=True)
class VisualizeConfig:
    """What to draw, and of which images.

    `data` is the name of a data set instead of files, `split` one of its splits. `images` is the largest number of
    images (None: every file, DATA_IMAGES of a data set, or all of it for a heat map). `style` is one of STYLES,
    `format` one of STILLS or ANIMATIONS. `heatmap` draws one figure of all images; `diff` compares two artifacts.
    """

    data: str | None = None
    split: str = "test"
    images: int | None = None
    style: str = "fade"
    format: str = "png"
    heatmap: bool = False
    diff: bool = False
    batch: int = 32
    device: str | None = None

    def __post_init__(self) -> None:
        check_choice("style", self.style, STYLES)
        check_choice("format", self.format, (*STILLS, *ANIMATIONS))
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


@dataclass(frozen=True)
class StageDrawn:
    """One stage over all images: patches `kept`; for two artifacts, the share of images for which both keep the same
    patches, and the largest `StageDifference.margin`."""

    stage: int
    kept: int
    same_images: float | None = None
    largest_margin: float | None = None


@dataclass(frozen=True)
class Drawn:
    """The figures that were written: the number of `files`, and the `overview`, a contact sheet or a heat map.

    `different` is the number of images of which two artifacts keep different patches; `keep_maps` are the data of a
    heat map.
    """

    files: int
    overview: str | None
    stages: tuple[StageDrawn, ...]
    different: int | None = None
    keep_maps: tuple[KeepMap, ...] = ()


@dataclass(frozen=True)
class VisualizeReport:
    """What was `drawn` in `folder`; `skipped` has a line per image or shard that could not be read, `others` is the
    number of files in the folder that are not from this run."""

    KIND: ClassVar[str] = "visualize"

    artifacts: tuple[str, ...]
    data: str
    images: int
    folder: str
    drawn: Drawn
    skipped: tuple[str, ...]
    others: int

    @property
    def notes(self) -> tuple[str, ...]:
        """What was written where, and a warning about other files in the folder."""
        files, first = self.drawn.files, self.drawn.overview
        if self.drawn.different == 0:
            written = "Both keep the same patches of every image, so nothing was drawn."
        elif not files:
            written = f"Drawn to {first}."
        else:
            hint = f"; look at {first} first" if first else ""
            written = f"{files} figure{'s' * (files != 1)} in {self.folder}{hint}."
        others = f"{self.folder} also holds {self.others} file{'s' * (self.others != 1)} that are not of this run."
        return (written, others) if self.others else (written,)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def table(self) -> Group:
        """One row per stage."""
        pair, table = len(self.artifacts) == 2, Table()
        for column in ("stage", "patches kept", *(("same in both", "largest margin") if pair else ())):
            table.add_column(column, justify="right")
        for row in self.drawn.stages:
            alike = () if row.same_images is None else (
                f"{row.same_images:.2%}", "-" if row.largest_margin is None else f"{row.largest_margin:.1e}")
            table.add_row(str(row.stage), str(row.kept), *alike)
        return Group(Text(f"{' and '.join(self.artifacts)}, {self.images} images of {self.data}"), table)
