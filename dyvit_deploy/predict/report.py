"""Settings of a prediction, its rows, and the report at the end."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from rich.text import Text

from ..settings.tables import Table

# Failures that a report lists; the rows have all of them.
LISTED_FAILURES = 20


@dataclass(frozen=True)
class Prediction:
    """The row of one image: its likeliest classes, best first, with softmax probabilities; or an `error`.

    `turned`: its file has an EXIF orientation other than upright.
    """

    image: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""
    turned: bool = False

    def cells(self, top: int) -> list[str]:
        """A text for each of `columns`; probabilities have the fewest digits that give the same float32."""
        probabilities = [str(np.float32(probability)) for probability in self.probabilities]
        pairs = [text for pair in zip(self.classes, probabilities) for text in pair]
        return [self.image, *pairs, *[""] * (2 * top - len(pairs)), self.error]


def columns(top: int) -> list[str]:
    """The names of the columns."""
    return ["image", *(f"{name}_{k}" for k in range(1, top + 1) for name in ("class", "probability")), "error"]


class RowText:
    """Formats rows as lines of a table with a header; the first rows determine the widths of the columns."""

    def __init__(self, top: int) -> None:
        self._top, self._widths = top, list[int]()

    def lines(self, rows: Sequence[Prediction]) -> list[str]:
        cells = [_printable(row, self._top) for row in rows]
        if not self._widths:
            cells.insert(0, columns(self._top))
            self._widths = [max(map(len, column)) for column in zip(*cells)]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, self._widths)).rstrip() for row in cells]


def _printable(row: Prediction, top: int) -> list[str]:
    """The cells without control characters, which a file name may contain."""
    return ["".join(c if c.isprintable() else "?" for c in cell) for cell in row.cells(top)]


class RowCounter:
    """Counts rows, failures and `turned` images so far, and keeps the `first` failures; its memory does not grow."""

    def __init__(self) -> None:
        self.images = self.failed = self.turned = 0
        self.first: list[str] = []

    def add(self, rows: Iterable[Prediction]) -> None:
        for row in rows:
            self.images += 1
            self.turned += row.turned
            if row.error:
                self.failed += 1
                if len(self.first) < LISTED_FAILURES:
                    self.first.append(f"{row.image}: {row.error}")


@dataclass(frozen=True)
class PredictReport:
    """The result of `predict_images`; false if no image could be predicted.

    `images` counts all rows, `failed` those with an error, of which `failures` lists the first, `resumed` those from an
    earlier, interrupted run, and `turned` the images with an EXIF orientation other than upright. `images_per_sec` is
    the speed of this run with the artifact open, data loading included; `seconds` is the whole time.
    """

    KIND: ClassVar[str] = "predict"

    artifact: str
    sources: tuple[str, ...]
    runner: str
    images: int
    failed: int
    resumed: int
    seconds: float
    images_per_sec: float
    files: tuple[str, ...]
    failures: tuple[str, ...]
    notes: tuple[str, ...]
    turned: int = 0

    def __bool__(self) -> bool:
        return self.failed < self.images

    def table(self) -> Table:
        """Counts and speed."""
        table = Table(title=Text(f"{self.artifact} ({self.runner})"), title_justify="left", show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        resumed = f" ({self.resumed} from before)" if self.resumed else ""
        table.add_row("images", f"{self.images}{resumed}")
        table.add_row("failed", str(self.failed))
        table.add_row("seconds", f"{self.seconds:.1f}")
        table.add_row("images/s, data loading included", f"{self.images_per_sec:.1f}")
        for file in self.files:
            table.add_row("written", Text(file))
        return table

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
