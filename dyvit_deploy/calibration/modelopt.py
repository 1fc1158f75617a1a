"""Calls NVIDIA ModelOpt, which inserts Q/DQ nodes and Casts for TensorRT. No other module imports it."""
from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from ..artifacts.locks import own_tempdir
from ..errors import ExportError, foreign_errors, reason
from ..optional import require

EXTRA = "calib"
PATCHED = ("calibrate", "base_quantizer", "qdq_quantizer")
# What modelopt.onnx imports. Its own [onnx] extra pins older versions of onnx and ONNX Runtime.
NEEDS = ("modelopt", "onnx_graphsurgeon", "onnxslim", "onnxconverter_common", "lief", "polygraphy")


def require_modelopt(module: str = "modelopt.onnx") -> Any:
    """Imports a module of ModelOpt.

    Raises:
        MissingDependency: it, or something that it imports, is not installed.
    """
    for needed in NEEDS:
        require(needed, extra=EXTRA)
    with quiet():
        return require(module, extra=EXTRA)


def run(function: Callable[..., Any], what: str, *arguments: Any, **options: Any) -> Any:
    """Calls a function of ModelOpt. `what` completes the message of its ExportError: "ModelOpt could not ..."."""
    def translated(error: Exception) -> ExportError:
        return ExportError(f"ModelOpt could not {what} ({reason(error)}); try another version of nvidia-modelopt.")

    # ModelOpt passes on the errors of five libraries.
    with own_tempdir("modelopt"), quiet(), onnxruntime_restored(), foreign_errors(translated):
        return function(*arguments, **options)


@contextlib.contextmanager
def onnxruntime_restored() -> Iterator[None]:
    """Restores the methods of ONNX Runtime's quantizer, which ModelOpt replaces for the whole process."""
    owners: list[Any] = []
    for name in PATCHED:
        module = require(f"onnxruntime.quantization.{name}")
        owners += [module, *(value for value in vars(module).values() if isinstance(value, type))]
    before = [(owner, dict(vars(owner))) for owner in owners]
    try:
        yield
    finally:
        for owner, values in before:
            for name, value in values.items():
                if callable(value) and vars(owner).get(name) is not value:
                    setattr(owner, name, value)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences ModelOpt's logs and prints, which no user can act on; a missing GPU is an error to it."""
    disabled, handlers = logging.root.manager.disable, list(logging.getLogger().handlers)
    logging.disable(logging.ERROR)
    try:
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
            yield
    finally:
        logging.disable(disabled)
        # ModelOpt installs its own handlers when it is imported.
        logging.getLogger().handlers[:] = handlers
