"""What `dyvit visualize` drew."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.console import Group
from rich.text import Text

from ..evaluation.evaluate import KeepMap
from ..settings.tables import Table


@dataclass(frozen=True)
class StageDrawn:
    """One stage over all images: patches `kept`; with two artifacts, the share of images for which they keep the
    same, and the largest score `margin` of a patch that only one keeps."""

    stage: int
    kept: int
    same_images: float | None = None
    largest_margin: float | None = None


@dataclass(frozen=True)
class Drawn:
    """`files` were written, besides `overview`, which shows many of them at once: a contact sheet or a heat map.

    `different` is the number of images of which two artifacts keep different patches; `keep_maps` are those of a heat
    map.
    """

    files: int
    overview: str | None
    stages: tuple[StageDrawn, ...]
    different: int | None = None
    keep_maps: tuple[KeepMap, ...] = ()


@dataclass(frozen=True)
class VisualizeReport:
    """What was `drawn` in `folder`; `skipped` has a line per image or shard that could not be read, `others` is the
    number of files in the folder that are not of this run."""

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
        """Where to look."""
        files, first = self.drawn.files, self.drawn.overview
        if self.drawn.different == 0:
            found = "Both keep the same patches of every image, so nothing was drawn."
        elif not files:
            found = f"Drawn to {first}."
        else:
            found = f"{files} figure{'s' * (files != 1)} in {self.folder}{f'; look at {first} first' if first else ''}."
        left = f"{self.folder} also holds {self.others} file{'s' * (self.others != 1)} that are not of this run."
        return (found, left) if self.others else (found,)

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
