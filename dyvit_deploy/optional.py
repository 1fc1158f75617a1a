"""Imports optional libraries when a function needs them."""
from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

from .errors import MissingDependency

# Set before the first import, unless the user did. From 1.29 on, ONNX Runtime would report its use over the network,
# and write an identifier to the file .ses in TMPDIR, through a link that someone else put there.
SETTINGS = {"ORT_DISABLE_TELEMETRY": "1"}


def require(module: str, extra: str | None = None) -> Any:
    """Imports `module` and returns it.

    `extra` is the extra of this distribution that installs it; None means the base installation.

    Raises:
        MissingDependency: the library is not installed; the message contains the pip command that installs it.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
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
