"""Writes rows to files, batch by batch; a file appears only when it is complete."""
from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from ..artifacts.facts import METADATA_KEY
from ..artifacts.files import atomic_write
from ..optional import require
from .report import Prediction, columns

# Spreadsheets take a cell that begins with one of these for a formula (OWASP, CSV injection), all but the apostrophe.
FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20'")
# Rows of a Parquet row group, all of which are in memory at once.
GROUP = 16_384


def write_csv(path: Path, batches: Iterable[list[Prediction]], top: int) -> None:
    """Writes CSV as in RFC 4180, but with line feeds as line ends; with a header, in UTF-8.

    A cell that begins with one of FORMULA gets an apostrophe in front, so that spreadsheets show it as text. Without
    its first apostrophe, if it has one, each cell is what it was.
    """
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        # csv quotes the characters of its own line end only, and a name may have either.
        writer = csv.writer(_LineFeeds(file), lineterminator="\r\n")
        writer.writerow(columns(top))
        for rows in batches:
            writer.writerows([f"'{cell}" if cell.startswith(FORMULA) else cell for cell in row.cells(top)]
                             for row in rows)


class _LineFeeds:
    """A text file whose rows, written one at a time, end with a line feed in place of \\r\\n."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, row: str) -> int:
        return self._file.write(row.removesuffix("\r\n") + "\n")


def write_parquet(path: Path, batches: Iterable[list[Prediction]], top: int, identity: Mapping[str, Any]) -> None:
    """Writes Parquet with the same columns as strings and float32; a row with an error has nulls for classes and
    probabilities. The schema's metadata has the `identity` of the run under `dyvit`.
    """
    arrow, parquet = require("pyarrow", extra="predict"), require("pyarrow.parquet", extra="predict")
    kinds = {name: arrow.float32() if name.startswith("probability") else arrow.string() for name in columns(top)}
    schema = arrow.schema(list(kinds.items()), {METADATA_KEY: json.dumps(dict(identity))})
    rows = chain.from_iterable(batches)
    with atomic_write(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        while group := list(islice(rows, GROUP)):
            values = zip(*(_values(row, top) for row in group))
            writer.write_table(arrow.table([arrow.array(column, kind) for column, kind in zip(values, kinds.values())],
                                           schema=schema))


def _values(row: Prediction, top: int) -> list[str | float | None]:
    pairs: list[str | float | None] = [value for pair in zip(row.classes, row.probabilities) for value in pair]
    return [row.image, *pairs, *[None] * (2 * top - len(pairs)), row.error]
