"""dyvit: from a DynamicViT checkpoint to a checked, timed artifact.

Importing this package costs nothing: each public name is loaded when it is first used.
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bench.report import BenchConfig
    from .calibration.collect import calibrate
    from .calibration.config import CalibrationConfig, PrecisionConfig
    from .calibration.ranges import Ranges
    from .calibration.sensitivity import measure_sensitivity
    from .config import (
        EngineRunConfig,
        KeepRequest,
        LoadConfig,
        ModelConfig,
        PruneConfig,
    )
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
    from .evaluation.evaluate import EvalConfig, evaluate, evaluate_artifact
    from .export.config import ExportConfig
    from .export.onnx import export_onnx
    from .inspect.artifact import inspect_artifact
    from .inspect.doctor import diagnose
    from .model.catalog import list_models
    from .model.checkpoint import load_model
    from .parity.compare import CheckConfig, Tolerance, check_artifacts, compare
    from .predict.report import PredictConfig
    from .predict.run import predict_images
    from .report.page import ReportConfig, write_report
    from .runners.open import open_runner
    from .serving.check import ServeConfig, check_serving
    from .serving.config import ServingConfig
    from .serving.export import export_repository
    from .sweep.grid import SweepConfig
    from .sweep.run import run_sweep
    from .training.command import train
    from .training.plan import TrainConfig
    from .visualization.config import VisualizeConfig
    from .visualization.run import visualize

_NAMES = {
    "bench.report": ("BenchConfig",),
    "calibration.collect": ("calibrate",),
    "calibration.config": ("CalibrationConfig", "PrecisionConfig"),
    "calibration.ranges": ("Ranges",),
    "calibration.sensitivity": ("measure_sensitivity",),
    "config": ("EngineRunConfig", "KeepRequest", "LoadConfig", "ModelConfig", "PruneConfig"),
    "data.open": ("open_images",),
    "demo.quickstart": ("run_quickstart",),
    "deploy.config": ("DeployConfig",),
    "deploy.dense": ("benchmark",),
    "deploy.on_device": ("build_artifact", "refit_artifact"),
    "deploy.pipeline": ("export_artifact", "plan_artifact"),
    "deploy.report": ("Progress",),
    "engine.build": ("build_engine", "plan_build"),
    "engine.config": ("BatchProfile", "BuildConfig"),
    "engine.preflight": ("preflight",),
    "engine.refit": ("refit_engine",),
    "errors": ("DyvitError",),
    "evaluation.evaluate": ("EvalConfig", "evaluate", "evaluate_artifact"),
    "export.config": ("ExportConfig",),
    "export.onnx": ("export_onnx",),
    "inspect.artifact": ("inspect_artifact",),
    "inspect.doctor": ("diagnose",),
    "model.catalog": ("list_models",),
    "model.checkpoint": ("load_model",),
    "parity.compare": ("CheckConfig", "Tolerance", "check_artifacts", "compare"),
    "predict.report": ("PredictConfig",),
    "predict.run": ("predict_images",),
    "report.page": ("ReportConfig", "write_report"),
    "runners.open": ("open_runner",),
    "serving.check": ("ServeConfig", "check_serving"),
    "serving.config": ("ServingConfig",),
    "serving.export": ("export_repository",),
    "sweep.grid": ("SweepConfig",),
    "sweep.run": ("run_sweep",),
    "training.command": ("train",),
    "training.plan": ("TrainConfig",),
    "visualization.config": ("VisualizeConfig",),
    "visualization.run": ("visualize",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from .artifacts.facts import own_version
        return own_version()
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
