import importlib.util
import json
import sys
from types import ModuleType

import pytest
from helpers import needs_rtx

from dyvit_deploy.inspect import doctor
from dyvit_deploy.inspect.doctor import MISSING, READY, UNUSABLE, diagnose
from dyvit_deploy.machine.hardware import Gpu


def state(report, name):
    return next(b for b in report.backends if b.name == name)


def without(monkeypatch, absent):
    real = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda module: module != absent and real(module))


def test_what_the_tests_run_on_is_ready():
    report = diagnose()
    assert report and state(report, "PyTorch").state == READY and "cpu" in state(report, "ONNX Runtime").devices
    json.dumps(report.to_json(), allow_nan=False)


def test_an_absent_backend_comes_with_its_pip_line(monkeypatch):
    without(monkeypatch, "openvino")
    row = state(diagnose(), "OpenVINO")
    assert row.state == MISSING and row.fix == "pip install 'dyvit-deploy[openvino]'"


@pytest.mark.parametrize("metadata", [None, b"", b"\xff\xfe"])
def test_damaged_packages_are_no_fault_of_a_backend(monkeypatch, tmp_path, metadata):
    """An interrupted installation leaves such folders, of strangers and of libraries that are recorded in reports."""
    for name in ("a_stranger", "scipy", "timm"):
        (tmp_path / f"{name}-1.0.dist-info").mkdir()
        if metadata is not None:
            (tmp_path / f"{name}-1.0.dist-info" / "METADATA").write_bytes(metadata)
    monkeypatch.syspath_prepend(tmp_path)
    report = diagnose()
    assert state(report, "ONNX Runtime").state == READY and "timm" not in report.versions


def test_a_backend_that_breaks_on_import_is_not_called_ready(monkeypatch, tmp_path):
    (tmp_path / "sklearn.py").write_text("raise OSError('libgomp.so.1: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [m for m in sys.modules if m.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    row = state(diagnose(), "digits data")
    assert row.state == UNUSABLE and "libgomp" in row.devices


@needs_rtx
def test_a_builder_of_engines_says_whether_they_could_run_here(monkeypatch):
    monkeypatch.setattr(doctor, "gpu", lambda: None)
    assert state(diagnose(), "TensorRT for RTX").devices == "builds only: no GPU works here"
    monkeypatch.setattr(doctor, "gpu", lambda: Gpu("Ada", "8.9"))
    assert state(diagnose(), "TensorRT for RTX").devices == "Ada (compute capability 8.9)"


@needs_rtx
def test_a_library_that_does_not_support_the_gpu_is_said_to_build_only(monkeypatch):
    monkeypatch.setattr(doctor, "gpu", lambda: Gpu("Hopper", "9.0"))
    devices = state(diagnose(), "TensorRT for RTX").devices
    assert devices.startswith("builds only: TensorRT for RTX does not support Hopper (compute capability 9.0); ")
    assert "--format trt" in devices


def test_a_library_too_old_to_build_is_not_called_ready(monkeypatch):
    library = ModuleType("tensorrt")
    library.__version__, library.__spec__ = "8.6.1", importlib.util.spec_from_loader("tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    row = state(diagnose(), "TensorRT")
    assert row.state == UNUSABLE and "8.6.1 is too old" in row.devices


def test_backends_that_are_there_say_what_they_can_do():
    report = diagnose()
    for name, module in (("OpenVINO", "openvino"), ("ModelOpt", "modelopt")):
        there = importlib.util.find_spec(module) is not None
        assert state(report, name).state == (READY if there else MISSING)


def test_without_onnx_runtime_the_verdict_is_no(monkeypatch):
    without(monkeypatch, "onnxruntime")
    assert not diagnose()
