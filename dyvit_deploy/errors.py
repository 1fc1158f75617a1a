"""Every error this package raises on purpose.

    DyvitError                      exit code 1
    ├── ConfigError                 exit code 2: an option or value is not valid
    ├── ArtifactError               a file is missing, damaged, not written by dyvit, or cannot be written
    │   └── CheckpointError         its tensors do not match the model
    ├── DataError                   an image source has nothing usable
    ├── MissingDependency           an optional library is not installed
    ├── BackendError                a runtime refuses the graph or the inputs
    ├── ExportError                 the exported graph is not the requested one
    └── TrainingError               training cannot start or continue

The message is one sentence that says what is wrong and what to do. Errors of other
libraries are translated where we call them, with ``raise ... from``.
"""
from __future__ import annotations

import contextlib
import difflib
import errno
import re
import traceback
from collections.abc import Callable, Iterable, Iterator

# A message lists so many choices.
LISTED = 20
# No word that a user meant is longer, and comparing takes the square of it.
LONGEST_WORD = 100
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class DyvitError(Exception):
    """Base of all errors that a user can cause and fix."""

    exit_code = 1


class ConfigError(DyvitError):
    """An option or value is not valid."""

    exit_code = 2


class ArtifactError(DyvitError):
    """A file is missing, damaged, not written by dyvit, or cannot be written."""


class CheckpointError(ArtifactError):
    """The tensors of a checkpoint do not match the model."""


class DataError(DyvitError):
    """An image source has nothing usable."""


class MissingDependency(DyvitError):
    """An optional library is not installed."""


class BackendError(DyvitError):
    """A runtime refuses the graph or the inputs."""


class ExportError(DyvitError):
    """The exported graph is not the requested one."""


class TrainingError(DyvitError):
    """Training cannot start or continue."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`" Did you mean 'deit-s'?"` with the closest choice; without a close one, the first choices."""
    choices, word = list(choices), word[:LONGEST_WORD]
    alike = [choice for choice in choices if choice.casefold() == word.casefold()]
    close = alike or difflib.get_close_matches(word, choices, n=1)
    if close:
        return f" Did you mean {close[0]!r}?"
    more = f", ... ({len(choices)} in all)" if len(choices) > LISTED else ""
    return f" Choose one of: {', '.join(choices[:LISTED])}{more}."


def shorten(value: object, longest: int = 60) -> str:
    """`repr(value)` for a message, cut after `longest` characters."""
    # Of a long text or list, the beginning is enough.
    text = repr(value[:longest] if isinstance(value, (str, bytes, list, tuple)) else value)
    cut = len(text) > longest or (isinstance(value, (str, bytes, list, tuple)) and len(value) > longest)
    return f"{text[:longest]}..." if cut else text


# What libraries say that could not get memory, or not map a file into it, in whatever exception of theirs.
NO_MEMORY = re.compile(r"failed to map segment|cannot allocate|can't allocate|failed to allocate|unable to allocate|"
                       r"out of memory|bad_alloc|can't start new thread", re.I)


def is_out_of_memory(error: BaseException) -> bool:
    """True if the machine's memory, or the limit of this process, was too small for what raised `error`."""
    return (isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
            or bool(NO_MEMORY.search(str(error))))


def reason(error: BaseException, last: bool = False) -> str:
    """The first line of another library's error message without its full stop, or the name of its class if the message
    is empty. `last`: the last line instead, for libraries whose messages begin with source locations."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1 if last else 0].rstrip(".") if lines else type(error).__name__


@contextlib.contextmanager
def foreign_errors(translated: Callable[[Exception], DyvitError]) -> Iterator[None]:
    """Raises `translated(error)` for whatever error another library raises in the block.

    Not translated: errors of this package, a full memory or disk, and mistakes in this package's own code, such as in a
    function that the library calls back.
    """
    try:
        yield
    except (DyvitError, MemoryError):
        raise
    except Exception as error:
        if (isinstance(error, OSError) and error.errno in DISK_FULL) or _own(error):
            raise
        raise translated(error) from error


def _own(error: Exception) -> bool:
    """True if no other library was called, or if one has called this package back."""
    packages = [str(frame.f_globals.get("__name__")).split(".")[0]
                for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = __name__.split(".")[0]
    foreign = [package != own for package in packages]
    return True not in foreign or False in foreign[foreign.index(True):]
