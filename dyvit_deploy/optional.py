"""Libraries that are imported only when a function needs them."""
from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from .errors import MissingDependency


def require(module: str, extra: str | None = None) -> Any:
    """Import `module` and return it.

    `extra` names the extra of this distribution that installs it; None means the base install.

    Raises:
        MissingDependency: with the pip command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Only an absent library is "not installed"; one that fails inside must show its own error.
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        package = f"dyvit-deploy[{extra}]" if extra else "dyvit-deploy"
        raise MissingDependency(
            f"{module.split('.')[0]} is not installed. Install it with: pip install '{package}'"
        ) from error


def installed(module: str) -> bool:
    """True when `module` can be found, without importing it."""
    return importlib.util.find_spec(module) is not None
