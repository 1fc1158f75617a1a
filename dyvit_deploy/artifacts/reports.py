"""The JSON files of reports, each with a stamp that says what wrote it and about which files."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from .facts import METADATA_KEY, own_version
from .files import hash_files, write_json

# Of the stamp.
REPORT_FORMAT = 1


class Report(Protocol):
    """A result that can be saved: KIND is what its JSON file is called, one word for each class of reports."""

    KIND: ClassVar[str]

    def to_json(self) -> dict[str, Any]: ...


def save_report(path: str | Path, report: Report, command: str, files: Iterable[str | Path] = ()) -> None:
    """Writes a report's JSON with a stamp in front, by which `dyvit report` knows it again.

    Args:
        report: what to save.
        command: what was typed to get it.
        files: the artifacts that it is about. Their hashes are kept, so that a figure is never taken for that of a
            file which has changed since; what `hash_files` found before the work is taken as it is.
    """
    hashes = dict(files) if isinstance(files, Mapping) else hash_files(files)
    stamp = {"report": report.KIND, "format": REPORT_FORMAT, "version": own_version(), "command": command,
             "files": hashes}
    write_json(path, {METADATA_KEY: stamp, **report.to_json()})
