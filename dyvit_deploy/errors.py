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

import difflib
import errno
import re
from collections.abc import Iterable

# A message lists so many choices.
LISTED = 20


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
    choices = list(choices)
    alike = [choice for choice in choices if choice.casefold() == word.casefold()]
    close = alike or difflib.get_close_matches(word, choices, n=1)
    if close:
        return f" Did you mean {close[0]!r}?"
    more = f", ... ({len(choices)} in all)" if len(choices) > LISTED else ""
    return f" Choose one of: {', '.join(choices[:LISTED])}{more}."


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
