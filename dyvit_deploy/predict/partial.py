"""Work that survives: a line per batch, kept until the whole is done.

The first line says what the rest is of. A batch is appended as one line and handed to the operating system at once, so
that an interruption or kill -9 loses no line; a loss of power loses the last seconds. A torn line is no line. Batches
are formed anew in the order of the images now, and kept only as long as they are the very same ones, so that the end
result is that of a run without interruption: to the last bit for the same command on the same machine and versions of
libraries.
"""
from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..errors import ArtifactError, ConfigError
from .predictor import Places
from .report import Prediction, Tally

SYNCED = 5.0                                # seconds of work that a loss of power may cost
WORDS = {"artifact": "another artifact", "load": "other options for the checkpoint", "sources": "other images",
         "top": "another --top", "batch": "another --batch"}


class PartialFile:
    """The unfinished rows beside the file to write; locked while it is open."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path, self._identity = path, dict(identity)
        self._synced = time.monotonic()

    def __enter__(self) -> PartialFile:
        """
        Raises:
            ConfigError: it is in use, or of another command.
            ArtifactError: it cannot be written.
        """
        try:
            self._file = self._open()
        except BlockingIOError as error:
            raise ConfigError(f"Another dyvit predict is writing {self.path}; wait for it, or name another file."
                              ) from error
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._check_head()
        except OSError as error:
            self._file.close()
            raise self._unwritable(error) from error
        except ConfigError:
            self._file.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        with suppress(OSError):                                            # what a full disk did not take is not kept
            self._file.close()                                             # and with it the lock

    def _open(self) -> IO[bytes]:
        """The file, locked itself: it is removed while it is locked, so the one at hand must still be the one there."""
        import fcntl  # not everywhere
        while True:
            file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                    return file
            except FileNotFoundError:
                pass                                                       # the other run ended in between
            except BaseException:
                file.close()
                raise
            file.close()

    def _unwritable(self, error: OSError) -> ArtifactError:
        return ArtifactError(f"{self.path} cannot be written ({error.strerror}); choose another place.")

    def _check_head(self) -> None:
        head = _parse(self._file.readline())
        if not isinstance(head, dict):                                     # new, or torn in its first line
            self._file.seek(0)
            self._file.truncate()
            self._file.write(_line(self._identity))
            self._file.flush()
        elif head != self._identity:
            other = [word for key, word in WORDS.items() if head.get(key) != self._identity.get(key)]
            raise ConfigError(f"{self.path} holds unfinished work of {' and '.join(other) or 'another dyvit'}; give "
                              "the command that began it, or delete the file to begin anew.")
        self._end_of_head = self._file.tell()

    def go_on(self, chunks: Iterator[Places], tally: Tally, notes: list[str]) -> Iterator[Places]:
        """What of `chunks` is still to do; the `tally` gets the rows that are there.

        Rows end where an image was added, removed or changed since; a note says so.
        """
        self._file.seek(self._end_of_head)
        while True:
            place, line = self._file.tell(), self._file.readline()
            rows = _parse(line)
            chunk = next(chunks, None) if isinstance(rows, list) else None
            if not isinstance(rows, list) or chunk is None or not _same(rows, chunk):
                break
            tally.add(_predictions(rows))
        if isinstance(rows, list):
            notes.append("Images were added, removed or changed since the run was interrupted: the first "
                         f"{tally.images} rows are kept, the others predicted anew.")
        self._file.seek(place)
        self._file.truncate()
        return chunks if chunk is None else chain([chunk], chunks)

    def append(self, places: Places, rows: list[Prediction]) -> None:
        """Adds a batch.

        Raises:
            ArtifactError: the disk is full or gone.
        """
        line = _line([[row.image, place.stamp, row.classes, row.probabilities, row.error]
                      for place, row in zip(places, rows)])
        try:
            self._file.write(line)
            self._file.flush()
            if time.monotonic() - self._synced > SYNCED:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise ArtifactError(f"{self.path} could not be written ({error.strerror}); free space, and the same "
                                "command goes on from there.") from error

    def batches(self) -> Iterator[list[Prediction]]:
        """Every batch, from the first."""
        self._file.seek(self._end_of_head)
        while line := self._file.readline():
            yield _predictions(json.loads(line))

    def remove(self) -> None:
        """After the work is elsewhere, and before the lock goes."""
        self.path.unlink(missing_ok=True)


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _parse(line: bytes) -> Any:
    """None for a line that is torn or damaged."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


def _same(rows: list[Any], places: Places) -> bool:
    return [row[:2] for row in rows] == [[place.name, place.stamp] for place in places]


def _predictions(rows: list[Any]) -> list[Prediction]:
    return [Prediction(image, tuple(classes), tuple(shares), error) for image, _, classes, shares, error in rows]
