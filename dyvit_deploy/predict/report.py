"""The rows of predictions, and the report at the end."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from rich.table import Table
from rich.text import Text

# Failures that a report names; the rows have all of them.
NAMED = 20


@dataclass(frozen=True)
class Prediction:
    """One image: its likeliest classes, best first, with softmax probabilities; or the `error`, and no classes."""

    image: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""

    def cells(self, top: int) -> list[str]:
        """A value for each of `columns`: probabilities in the fewest digits that give the same float32."""
        shares = [str(np.float32(share)) for share in self.probabilities]
        pairs = [text for pair in zip(self.classes, shares) for text in pair]
        return [self.image, *pairs, *[""] * (2 * top - len(pairs)), self.error]


def columns(top: int) -> list[str]:
    """The names of a row's values."""
    return ["image", *(f"{name}_{k}" for k in range(1, top + 1) for name in ("class", "probability")), "error"]


class RowText:
    """Rows as lines for people, one by one, below a header; columns are as wide as the first rows need."""

    def __init__(self, top: int) -> None:
        self._top, self._widths = top, list[int]()

    def lines(self, rows: Sequence[Prediction]) -> list[str]:
        cells = [_printable(row, self._top) for row in rows]
        if not self._widths:
            cells.insert(0, columns(self._top))
            self._widths = [max(map(len, column)) for column in zip(*cells)]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, self._widths)).rstrip() for row in cells]


def _printable(row: Prediction, top: int) -> list[str]:
    """A file name may hold what would steer a terminal."""
    return ["".join(c if c.isprintable() else "?" for c in cell) for cell in row.cells(top)]


class Tally:
    """What is known of the rows so far, in memory that does not grow."""

    def __init__(self) -> None:
        self.images = self.failed = 0
        self.first: list[str] = []

    def add(self, rows: Iterable[Prediction]) -> None:
        for row in rows:
            self.images += 1
            if row.error:
                self.failed += 1
                if len(self.first) < NAMED:
                    self.first.append(f"{row.image}: {row.error}")


@dataclass(frozen=True)
class PredictReport:
    """`images` are all rows; `failed` have an error instead of classes, and `failures` names the first of them;
    `resumed` were there from an earlier, interrupted run. `images_per_sec` is that of this run from the opened artifact
    on, data loading included; `seconds` is all of it.
    False when not one image could be predicted.
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
