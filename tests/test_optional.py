import os
import subprocess
import sys

import pytest
from helpers import HANGS, ROOT, tiny_checkpoint

from dyvit_deploy.calibration.config import CalibrationConfig, PrecisionConfig
from dyvit_deploy.calibration.targets import FORMAT_SUFFIXES
from dyvit_deploy.deploy.config import DeployConfig
from dyvit_deploy.deploy.pipeline import export_artifact
from dyvit_deploy.errors import MissingDependency
from dyvit_deploy.machine.openvino import core
from dyvit_deploy.optional import SETTINGS, installed, require


def test_an_absent_library_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependency, match=r"pip install 'dyvit-deploy\[demo\]'"):
        require("sklearn.datasets", extra="demo")


def test_a_library_that_breaks_inside_shows_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("import something_it_needs")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_it_needs"):
        require("broken_library")


def test_onnx_runtime_writes_no_identifier_through_a_link_in_tmpdir(tmp_path):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "tmp" / ".ses").symlink_to(tmp_path / "precious")
    # In CI it writes none anyway.
    known = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, "CI")}
    script = "from dyvit_deploy.optional import require; require('onnxruntime')"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=known | {"TMPDIR": str(tmp_path / "tmp")}, check=True,
                   timeout=HANGS)
    assert (tmp_path / "precious").read_text() == "precious"


def test_the_user_may_choose_to_report(monkeypatch):
    [name] = SETTINGS
    monkeypatch.setenv(name, "0")
    require("json")
    assert os.environ[name] == "0"
    monkeypatch.delenv(name)
    require("json")
    assert os.environ[name] == "1"


def test_installed_does_not_import(tmp_path, monkeypatch):
    (tmp_path / "quiet_library.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(tmp_path)
    assert installed("quiet_library")
    assert not installed("no_such_library")


@pytest.mark.parametrize("module, precision, format", [
    ("modelopt", {"precision": "float16"}, "onnx"), ("lief", {"precision": "float8"}, "onnx"),
    ("openvino", {}, "openvino"),
])
def test_an_export_without_its_library_names_the_pip_line_and_writes_nothing(tmp_path, monkeypatch, module, precision,
                                                                             format):
    monkeypatch.setitem(sys.modules, module, None)
    core.cache_clear()                      # it may have been opened by a test before
    config = DeployConfig(format, precision=PrecisionConfig(**precision),
                          calibration=CalibrationConfig(allow_noise=True) if precision else CalibrationConfig())
    with pytest.raises(MissingDependency, match=rf"{module} is not installed. .*pip install 'dyvit-deploy\["):
        export_artifact(tiny_checkpoint(tmp_path), tmp_path / f"m{FORMAT_SUFFIXES[format]}", config)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.safetensors"]
