"""dyvit: from a DynamicViT checkpoint to a checked, timed artifact.

Importing this package costs nothing: each public name is loaded when it is first used.
"""
from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bench.config import BenchConfig
    from .calibration.collect import calibrate
    from .calibration.config import CalibrationConfig, PrecisionConfig
    from .calibration.ranges import Ranges
    from .calibration.sensitivity import measure_sensitivity
    from .config import EngineRunConfig, KeepRequest, LoadConfig, ModelConfig, PruneConfig
    from .data.open import open_images
    from .demo.quickstart import run_quickstart
    from .deploy.config import DeployConfig
    from .deploy.dense import benchmark
    from .deploy.on_device import build_artifact, refit_artifact
    from .deploy.pipeline import export_artifact, plan_artifact
    from .deploy.report import Progress
    from .engine.build import build_engine, plan_build
    from .engine.config import BatchProfile, BuildConfig
    from .engine.preflight import preflight
    from .engine.refit import refit_engine
    from .errors import DyvitError
    from .evaluation.config import EvalConfig
    from .evaluation.evaluate import evaluate, evaluate_artifact
    from .export.config import ExportConfig
    from .export.onnx import export_onnx
    from .inspect.artifact import inspect_artifact
    from .inspect.doctor import diagnose
    from .model.catalog import list_models
    from .model.checkpoint import load_model
    from .parity.against import check_against
    from .parity.compare import check_artifacts, compare
    from .parity.config import CheckConfig
    from .parity.tolerance import Tolerance
    from .predict.config import PredictConfig
    from .predict.run import predict_images
    from .report.config import ReportConfig
    from .report.page import write_report
    from .runners.open import open_runner
    from .serving.check import check_serving
    from .serving.config import ServeConfig, ServingConfig
    from .serving.export import export_repository
    from .sweep.grid import SweepConfig
    from .sweep.run import run_sweep
    from .training.command import train
    from .training.plan import TrainConfig
    from .visualization.config import VisualizeConfig
    from .visualization.run import visualize

# The imports above, which are written for type checkers, are also the list of public names: name -> module.
_HOME = {alias.name: node.module for node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8")))
         if isinstance(node, ast.ImportFrom) and node.level for alias in node.names}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module(".artifacts.facts", __name__).own_version()
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
