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
    from .deploy.config import DeployConfig
    from .deploy.dense import benchmark
    from .deploy.on_device import build_artifact, refit_artifact
    from .deploy_report import Progress
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
    from .pipeline import export_artifact, plan_artifact
    from .predict.report import PredictConfig
    from .predict.run import predict_images
    from .quickstart import run_quickstart
    from .report.page import ReportConfig, write_report
    from .runners.open import open_runner
    from .serving.check import ServeConfig, check_serving
    from .serving.config import ServingConfig
    from .serving.export import export_repository
    from .sweep.grid import SweepConfig
    from .sweep.run import run_sweep
    from .training.command import train
    from .training.plan import TrainConfig
    from .visualize.config import VisualizeConfig
    from .visualize.run import visualize

_NAMES = {
    "bench.report": ("BenchConfig",),
    "bench.run": ("benchmark",),
    "catalog": ("list_models",),
    "calibration.collect": ("calibrate",),
    "calibration.ranges": ("Ranges",),
    "calibration.sensitivity": ("measure_sensitivity",),
    "config": ("EngineRunConfig", "KeepRequest", "LoadConfig", "ModelConfig", "PruneConfig"),
    "data.open": ("open_images",),
    "deploy_config": ("BatchProfile", "BuildConfig", "CalibrationConfig", "DeployConfig", "ExportConfig",
                      "PrecisionConfig", "ServingConfig"),
    "deploy_report": ("Progress",),
    "doctor": ("diagnose",),
    "engine.build": ("build_engine", "plan_build"),
    "engine.preflight": ("preflight",),
    "engine.refit": ("refit_engine",),
    "errors": ("DyvitError",),
    "export.onnx": ("export_onnx",),
    "inspection": ("inspect_artifact",),
    "model.checkpoint": ("load_model",),
    "deploy.on_device": ("build_artifact", "refit_artifact"),
    "parity": ("CheckConfig", "Tolerance", "check_artifacts", "compare"),
    "pipeline": ("export_artifact", "plan_artifact"),
    "prediction.report": ("PredictConfig",),
    "prediction.run": ("predict_images",),
    "quickstart": ("run_quickstart",),
    "report.page": ("ReportConfig", "write_report"),
    "report.request": ("VisualizeConfig",),
    "report.visualize": ("visualize",),
    "runners.evaluate": ("EvalConfig", "evaluate", "evaluate_artifact"),
    "runners.open": ("open_runner",),
    "serving.check": ("ServeConfig", "check_serving"),
    "serving.export": ("export_repository",),
    "sweep.grid": ("SweepConfig",),
    "sweep.run": ("run_sweep",),
    "training.loop": ("train",),
    "training.plan": ("TrainConfig",),
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
