"""The unfinished rows of a run, in a file with one line per batch, so that an interrupted run can be resumed.

The first line identifies the run; an incomplete last line is discarded on resume. A batch is appended as one line and
flushed to the operating system at once, so an interruption or kill -9 loses no line; a loss of power loses the last
seconds. On resume, the images are listed and divided into batches again, and stored batches are kept up to the first
one with other images. The end result is therefore that of a run without interruption: to the last bit for the same
command on the same machine and versions of libraries.
"""
from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

from ..artifacts.files import unwritten
from ..errors import ConfigError
from ..settings.untrusted import parse_json, typed
from .predictor import Chunk
from .report import Prediction, RowCounter

# Seconds between syncs to disk: the work that a loss of power may cost.
SYNC_INTERVAL = 5.0
MISMATCHES = {"artifact": "another artifact", "load": "other options for the checkpoint", "sources": "other images",
              "top": "another --top", "batch": "another --batch", "labels": "other --labels",
              "orient": "another --orient"}


# Of an image: its name, its stamp, classes, probabilities, an error, and whether it has an orientation not applied.
Row = tuple[str, str, tuple[str, ...], tuple[float, ...], str, bool]


class PartialFile:
    """The file with the unfinished rows, beside the file to write, whose lock must be held."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path, self._identity = path, dict(identity)
        self._synced = time.monotonic()

    def __enter__(self) -> PartialFile:
        """
        Raises:
            ConfigError: it belongs to another command.
            ArtifactError: it cannot be written.
        """
        try:
            self.path.touch()
            self._file = self.path.open("r+b")
        except OSError as error:
            raise unwritten(self.path, error) from error
        try:
            self._check_header()
        except OSError as error:
            self._close()
            raise unwritten(self.path, error) from error
        except ConfigError:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        # On a full disk, closing fails with the data that was not written.
        with suppress(OSError):
            self._file.close()

    def _check_header(self) -> None:
        header = _parse(self._file.readline())
        # The file is new, or its first line is incomplete.
        if not isinstance(header, dict):
            self._file.seek(0)
            self._file.truncate()
            try:
                self._file.write(_line(self._identity))
                self._file.flush()
            except OSError:
                with suppress(OSError):
                    self.path.unlink()
                raise
        elif header != self._identity:
            differing = [text for key, text in MISMATCHES.items() if header.get(key) != self._identity.get(key)]
            raise ConfigError(f"{self.path} holds unfinished work of {' and '.join(differing) or 'another dyvit'}; "
                              "repeat the command that started it, or delete the file to start again.")
        self._header_end = self._file.tell()

    def resume(self, chunks: Iterator[Chunk], counter: RowCounter, notes: list[str]) -> Iterator[Chunk]:
        """The chunks that are not predicted yet; adds the stored rows to `counter`.

        From the first chunk on in which an image was added, removed or changed, stored rows are dropped, with a note.
        """
        self._file.seek(self._header_end)
        while True:
            offset, line = self._file.tell(), self._file.readline()
            rows = _parse(line)
            chunk = next(chunks, None) if isinstance(rows, tuple) else None
            if not isinstance(rows, tuple) or chunk is None or not _same(rows, chunk):
                break
            counter.add(_predictions(rows))
        if isinstance(rows, tuple):
            notes.append("Images were added, removed or changed since the run was interrupted: the first "
                         f"{counter.images} rows are kept, the others are predicted again.")
        self._file.seek(offset)
        self._file.truncate()
        return chunks if chunk is None else chain([chunk], chunks)

    def append(self, chunk: Chunk, rows: list[Prediction]) -> None:
        """Adds the rows of a chunk.

        Raises:
            ArtifactError: the disk is full or gone.
        """
        line = _line([[row.image, place.stamp, row.classes, row.probabilities, row.error, row.turned]
                      for place, row in zip(chunk, rows)])
        try:
            self._file.write(line)
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_INTERVAL:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise unwritten(self.path, error) from error

    def batches(self) -> Iterator[list[Prediction]]:
        """The rows of every batch, from the first on."""
        self._file.seek(self._header_end)
        while line := self._file.readline():
            yield _predictions(json.loads(line))

    def remove(self) -> None:
        """Deletes the file; call it after the results are written."""
        # Windows removes no open file.
        self._close()
        self.path.unlink(missing_ok=True)


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _parse(line: bytes) -> Any:
    """The object or the rows in a line; None if the line is incomplete or damaged."""
    try:
        value = parse_json(line) if line.endswith(b"\n") else None
        return value if isinstance(value, dict) else typed(value, tuple[Row, ...], "row")
    except ConfigError:
        return None


def _same(rows: Sequence[Any], chunk: Chunk) -> bool:
    return [[*row[:2]] for row in rows] == [[place.name, place.stamp] for place in chunk]


def _predictions(rows: Sequence[Any]) -> list[Prediction]:
    return [Prediction(image, tuple(classes), tuple(probabilities), error, turned)
            for image, _, classes, probabilities, error, turned in rows]
