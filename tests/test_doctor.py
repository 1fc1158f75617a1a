import importlib.util
import json
import sys

from dyvit_deploy import doctor
from dyvit_deploy.doctor import MISSING, READY, UNUSABLE, UNUSED, diagnose


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


def test_a_backend_that_breaks_on_import_is_not_called_ready(monkeypatch, tmp_path):
    (tmp_path / "sklearn.py").write_text("raise OSError('libgomp.so.1: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [m for m in sys.modules if m.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    row = state(diagnose(), "digits data")
    assert row.state == UNUSABLE and "libgomp" in row.devices


def test_backends_without_a_runner_are_never_called_ready():
    report = diagnose()
    assert all(state(report, name).state in (MISSING, UNUSED, UNUSABLE) for name in ("TensorRT for RTX", "TensorRT"))


def test_backends_that_are_there_say_what_they_can_do():
    report = diagnose()
    for name, module in (("OpenVINO", "openvino"), ("ModelOpt", "modelopt")):
        there = importlib.util.find_spec(module) is not None
        assert state(report, name).state == (READY if there else MISSING)


def test_without_onnx_runtime_the_verdict_is_no(monkeypatch):
    without(monkeypatch, "onnxruntime")
    assert not diagnose()
