"""Every error this package raises on purpose.

    DyvitError                      exit code 1
    ├── ConfigError                 exit code 2: a value that the user typed cannot be meant
    ├── ArtifactError               a file is missing, damaged, not ours, or cannot be written
    │   └── CheckpointError         its tensors do not fit the model
    ├── DataError                   an image source has nothing usable in it
    ├── MissingDependency           an optional library is not installed
    ├── BackendError                a runtime refused the graph or the feed
    ├── ExportError                 the exported graph is not what was asked for
    └── TrainingError               training cannot go on

The message is one sentence that says what is wrong and what to do. Errors of other
libraries are translated where we call them, with ``raise ... from``.
"""
from __future__ import annotations

import difflib
from collections.abc import Iterable


class DyvitError(Exception):
    """Base of all errors that a user can cause and mend."""

    exit_code = 1


class ConfigError(DyvitError):
    """A value is outside its documented range."""

    exit_code = 2


class ArtifactError(DyvitError):
    """A file cannot be read as what it should be, or cannot be written."""


class CheckpointError(ArtifactError):
    """The tensors of a checkpoint do not fit the model."""


class DataError(DyvitError):
    """An image source holds nothing usable."""


class MissingDependency(DyvitError):
    """An optional library is not installed."""


class BackendError(DyvitError):
    """A runtime refused the graph or the feed."""


class ExportError(DyvitError):
    """The exported graph is not what was asked for."""


class TrainingError(DyvitError):
    """Training cannot go on."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`" Did you mean 'deit-s'?"` for the closest choice, or the list of all choices."""
    choices = list(choices)
    close = difflib.get_close_matches(word, choices, n=1)
    return f" Did you mean {close[0]!r}?" if close else f" Choose one of: {', '.join(choices)}."


def reason(error: BaseException, last: bool = False) -> str:
    """One line of a foreign error's message (the `last` one where a library begins with its source files),
    without its full stop; the error's class where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1 if last else 0].rstrip(".") if lines else type(error).__name__
