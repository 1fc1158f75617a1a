"""What commands say: results on standard output, everything else on standard error."""
from __future__ import annotations

import codecs
import contextlib
import io
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import click
from rich.text import Text

from ..artifacts.facts import own_version
from ..artifacts.files import hash_files
from ..artifacts.reports import save_report
from ..errors import ConfigError
from ..machine.processes import is_first, rank
from ..settings.notes import LOGGER
from ..settings.tables import printable
from .progress import console, errors

if TYPE_CHECKING:
    from ..engine.build import BuildPlan


# Key under which click's context keeps the command as it was typed.
TYPED = "dyvit.typed"


def show(report: Any, json_file: str | None, beside: bool = False, files: Iterable[str | Path] = ()) -> None:
    """Prints a report's table, and writes its JSON where asked; the first of several processes does.

    The table goes `beside` the results, to standard error, where those are lines. `files` are the artifacts that the
    report is about, see `save_report`.
    """
    if not is_first():
        return
    (errors() if beside else console()).print(report.table())
    if json_file:
        save_report(json_file, report, typed_command(), files)


def finish(report: Any, json_file: str | None, files: Iterable[str | Path] = (), skipped: tuple[str, ...] = (),
           advice: Iterable[str] = (), next_step: str = "") -> NoReturn:
    """Shows a report that passes or fails, with its notes, failures and the next command; exits 1 when it fails."""
    show(report, json_file, files=files)
    skipped_notes(skipped)
    note(*report.notes)
    fail_notes(report.failures, advice)
    note(*([f"Next: {next_step}"] if next_step else []))
    sys.exit(not report)


def typed_command() -> str:
    """As the user typed it."""
    context = click.get_current_context(silent=True)
    return str(context.meta.get(TYPED, "dyvit")) if context else "dyvit"


def hashed(json_file: str | None, *files: str | Path | None) -> dict[str, str]:
    """What `show` takes as `files`: call it before the work, in which a file may change; no report, no hashes."""
    return hash_files(file for file in files if file) if json_file and is_first() else {}


def check_apart(out: str, json_file: str | None) -> None:
    """Refuses a report in the place of an engine's own description."""
    if json_file and Path(json_file).resolve() == Path(f"{out}.json").resolve():
        raise ConfigError(f"{json_file} is where the description of {out} goes; name another file.")


def show_plan(plan: BuildPlan, json_file: str | None) -> None:
    """The steps as a table, and the commands unwrapped, to be copied."""
    show(plan, json_file)
    show_lines(plan.commands)


def show_lines(lines: Iterable[str]) -> None:
    """Results that are lines, commands above all: not wrapped, so that they can be copied."""
    for line in lines:
        click.echo(line)


def note(*lines: str) -> None:
    """Lines for people, apart from the results; from the first of several processes."""
    for line in lines if is_first() else ():
        click.echo(printable(line), err=True)


class NotesHandler(logging.Handler):
    """Shows what `settings.notes` reports, each sentence once per command."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._shown and is_first():
            self._shown.add(text)
            style = "yellow" if record.levelno >= logging.WARNING else "dim"
            errors().print(Text(printable(text), style), soft_wrap=True)


@contextlib.contextmanager
def shown_notes() -> Iterator[None]:
    """Shows the notes of the library within the block."""
    logger, handler = logging.getLogger(LOGGER), NotesHandler()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def accept_any_text() -> None:
    """Lets standard output and error take any text: bytes of file names that are not text pass as they are, and other
    characters that the terminal's encoding lacks become question marks."""
    codecs.register_error("dyvit", _encoded)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="dyvit")


def _encoded(error: UnicodeError) -> tuple[bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    wrong = error.object[error.start:error.end]
    # Python reads the byte 0xE4 of a name as U+DCE4.
    return b"".join(bytes([ord(letter) - 0xDC00]) if "\udc80" <= letter <= "\udcff" else b"?"
                    for letter in wrong), error.end


def complain(text: str) -> None:
    """The one sentence of an error, from any process."""
    click.echo(printable(f"dyvit{f' (rank {rank()})' if rank() else ''}: {text}"), err=True)


def ask_for_report() -> None:
    """Adds a last line to the traceback that Python is going to print."""
    printed, typed = sys.excepthook, typed_command()

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        printed(kind, error, trace)
        complain(f"this is a mistake in dyvit {own_version()}, not in what you typed; please report it with the lines "
                 f"above and the command: {typed}")

    sys.excepthook = hook


def fail_notes(failures: Iterable[str], advice: Iterable[str] = ()) -> None:
    note(*(f"FAILED {failure}" for failure in failures), *(f"  {line}" for line in advice))


def skipped_notes(skipped: tuple[str, ...]) -> None:
    if skipped:
        note(f"Could not be read and were skipped, {len(skipped)} in all:", *(f"  {line}" for line in skipped))


def failed_notes(failed: int, first: tuple[str, ...]) -> None:
    """Images without a prediction, the first of them by name."""
    if failed:
        note(f"No prediction for {failed} image{'s' * (failed > 1)}, whose rows have the error"
             f"{'; the first' if failed > len(first) else ''}:", *(f"  {line}" for line in first))


@contextlib.contextmanager
def kept_when_stopped(partial: Path | None) -> Iterator[None]:
    """Says, after Ctrl-C, what goes on from the `partial` file."""
    try:
        yield
    except KeyboardInterrupt:
        if partial and partial.is_file():
            note(f"Stopped. {partial} holds what is done; the same command goes on from there.")
        raise


def step(text: str) -> None:
    """One line per step of long work, on standard error."""
    errors().print(Text(printable(f"{text} ..."), "dim"), soft_wrap=True)
