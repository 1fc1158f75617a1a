"""Mistakes of this program are tracebacks that ask for a report; they are never told as mistakes of the user."""
import errno
import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT

from dyvit_deploy.calibration import modelopt
from dyvit_deploy.errors import ArtifactError, ExportError, foreign_errors

BROKEN = """
import sys
import dyvit_deploy.model.catalog as catalog
def list_models(*_, **__):
    raise KeyError("forgotten")
catalog.list_models = list_models
from dyvit_deploy.cli.main import main
main(prog_name="dyvit")
"""


def test_a_mistake_of_ours_is_a_traceback_whose_last_line_asks_for_a_report():
    done = subprocess.run([sys.executable, "-c", BROKEN, "models", "deit-s"], capture_output=True, text=True, cwd=ROOT)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1 and lines[0].startswith("Traceback") and "KeyError: 'forgotten'" in lines[-2]
    assert lines[-1].startswith("dyvit: this is a mistake in dyvit") and lines[-1].endswith(": dyvit models deit-s")


def test_wrong_usage_asks_for_no_report():
    done = subprocess.run([sys.executable, "-m", "dyvit_deploy", "export"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "mistake" not in done.stderr and "Traceback" not in done.stderr


def theirs():
    json.loads("{")


def called_back():
    json.loads("{}", object_hook=lambda _: 1 / 0)


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def as_ours(monkeypatch):
    """The functions of this file count as code of the package."""
    monkeypatch.setitem(globals(), "__name__", "dyvit_deploy.test")


@pytest.mark.parametrize("act, raised", [(theirs, ArtifactError), (called_back, ZeroDivisionError), (full, OSError)])
def test_only_errors_of_the_other_library_are_translated(as_ours, act, raised):
    with pytest.raises(raised), foreign_errors(lambda error: ArtifactError("it is damaged")):
        act()


def test_a_full_memory_and_our_own_errors_pass():
    for error in (MemoryError(), ExportError("known")):
        with pytest.raises(type(error)), foreign_errors(lambda _: ArtifactError("it is damaged")):
            raise error


def test_what_modelopt_calls_back_is_not_blamed_on_its_version(monkeypatch):
    monkeypatch.setattr(modelopt, "PATCHED", ())
    with pytest.raises(ExportError, match="ModelOpt could not quantize the graph"):
        modelopt.run(json.loads, "quantize the graph", "{")
    # Our own call is wrong.
    with pytest.raises(TypeError):
        modelopt.run(lambda: None, "quantize the graph", "{", 1)
