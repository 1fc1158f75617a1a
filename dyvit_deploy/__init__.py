"""dyvit: from a DynamicViT checkpoint to a checked, timed artifact.

Importing this package costs nothing: each public name is loaded when it is first used.
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bench import BenchConfig, benchmark
    from .catalog import list_models
    from .config import ExportConfig, KeepRequest, LoadConfig, ModelConfig, PruneConfig
    from .data.images import open_images
    from .doctor import diagnose
    from .errors import DyvitError
    from .export.onnx import export_onnx
    from .inspection import inspect_artifact
    from .model.checkpoint import load_model
    from .parity import Tolerance, compare
    from .quickstart import run_quickstart
    from .runners.evaluate import evaluate
    from .runners.open import open_runner
    from .training.loop import TrainConfig, train

_HOME = {
    "BenchConfig": "bench", "benchmark": "bench", "list_models": "catalog", "ExportConfig": "config",
    "KeepRequest": "config", "LoadConfig": "config", "ModelConfig": "config", "PruneConfig": "config",
    "open_images": "data.images", "diagnose": "doctor", "DyvitError": "errors", "export_onnx": "export.onnx",
    "inspect_artifact": "inspection", "load_model": "model.checkpoint", "Tolerance": "parity",
    "compare": "parity", "run_quickstart": "quickstart", "evaluate": "runners.evaluate",
    "open_runner": "runners.open", "TrainConfig": "training.loop", "train": "training.loop",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from .artifacts import own_version
        return own_version()
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
