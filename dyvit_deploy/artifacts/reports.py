"""Writes reports as JSON files with a stamp: what wrote the report, and the files that it is about."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from .facts import METADATA_KEY, own_version
from .files import hash_files, write_json

# The version of the stamp's format.
REPORT_FORMAT = 1


class Report(Protocol):
    """A result that can be saved. KIND identifies the class of the report in its JSON file, by one word."""

    KIND: ClassVar[str]

    def to_json(self) -> dict[str, Any]: ...


def save_report(path: str | Path, report: Report, command: str, files: Iterable[str | Path] = ()) -> None:
    """Writes a report as JSON, preceded by the stamp by which `dyvit report` recognises it.

    Args:
        report: the report to save.
        command: the command line that created it.
        files: the artifacts that it is about, or their hashes, if `hash_files` computed them before the work. The
            hashes are stored, so that figures are not attributed to a file that has changed since.
    """
    hashes = dict(files) if isinstance(files, Mapping) else hash_files(files)
    stamp = {"report": report.KIND, "format": REPORT_FORMAT, "version": own_version(), "command": command,
             "files": hashes}
    write_json(path, {METADATA_KEY: stamp, **report.to_json()})
