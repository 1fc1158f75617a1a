"""Settings of a prediction, its rows, and the report at the end."""
from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.table import Table
from rich.text import Text

from ..errors import ConfigError, did_you_mean

RUNNERS = ("local", "ray")
# Failures that a report lists; the rows have all of them.
LISTED_FAILURES = 20


@dataclass(frozen=True)
class PredictConfig:
    """How to predict: `top` classes per image, in batches of `batch`.

    `csv` and `parquet` are files to write, if any. `runner` is "local", or "ray" with `workers` processes (None: one
    per GPU of the cluster, else one per machine). `device` is as in `open_runner`.
    """

    top: int = 5
    batch: int = 32
    csv: str | None = None
    parquet: str | None = None
    runner: str = "local"
    workers: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        for name in ("top", "batch", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} must be at least 1, not {value}.")
        for name in ("csv", "parquet"):
            value = getattr(self, name)
            if value is not None and Path(value).suffix.lower() != f".{name}":
                raise ConfigError(f"--{name} writes a .{name} file, not {Path(value).name!r}.")
        if self.csv and self.parquet and os.path.realpath(self.csv) == os.path.realpath(self.parquet):
            raise ConfigError(f"--csv and --parquet both write {os.path.realpath(self.csv)}; name two files.")
        if self.runner not in RUNNERS:
            raise ConfigError(f"Unknown runner {self.runner!r}.{did_you_mean(self.runner, RUNNERS)}")
        if self.workers is not None and self.runner == "local":
            raise ConfigError("--workers is for --runner ray; on one machine a single process uses every core.")

    @property
    def files(self) -> tuple[Path, ...]:
        """The files to write; empty if rows only go to the `watch` callback."""
        return tuple(Path(file) for file in (self.csv, self.parquet) if file)

    def check_apart(self, report: str | None) -> None:
        """Raises ConfigError if the file `report` is also one of `files`."""
        if report and any(os.path.realpath(report) == os.path.realpath(file) for file in self.files):
            raise ConfigError(f"--json {report} is the file that the rows go to; name another one.")

    @property
    def partial(self) -> Path | None:
        """The file that holds the rows until the run is complete."""
        return Path(f"{self.files[0]}.partial") if self.files else None


@dataclass(frozen=True)
class Prediction:
    """The row of one image: its likeliest classes, best first, with softmax probabilities; or an `error`."""

    image: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""

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
    """Counts the rows and the failures so far, and keeps the `first` failures; its memory does not grow."""

    def __init__(self) -> None:
        self.images = self.failed = 0
        self.first: list[str] = []

    def add(self, rows: Iterable[Prediction]) -> None:
        for row in rows:
            self.images += 1
            if row.error:
                self.failed += 1
                if len(self.first) < LISTED_FAILURES:
                    self.first.append(f"{row.image}: {row.error}")


@dataclass(frozen=True)
class PredictReport:
    """The result of `predict_images`; false if no image could be predicted.

    `images` counts all rows, `failed` those with an error, of which `failures` lists the first, and `resumed` those
    from an earlier, interrupted run. `images_per_sec` is the speed of this run with the artifact open, data loading
    included; `seconds` is the whole time.
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
