"""Imports optional libraries when a function needs them."""
from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from .errors import MissingDependency


def require(module: str, extra: str | None = None) -> Any:
    """Imports `module` and returns it.

    `extra` is the extra of this distribution that installs it; None means the base installation.

    Raises:
        MissingDependency: the library is not installed; the message contains the pip command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # An import that fails inside an installed library must show its own error.
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        package = f"dyvit-deploy[{extra}]" if extra else "dyvit-deploy"
        raise MissingDependency(
            f"{module.split('.')[0]} is not installed. Install it with: pip install '{package}'"
        ) from error


def installed(module: str) -> bool:
    """True if `module` can be found; does not import it."""
    return importlib.util.find_spec(module) is not None
