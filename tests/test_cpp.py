"""The C++ runtime builds, and its own tests pass, as a release and with sanitizers.

It needs cmake, a C++ compiler, the packages that docs/cpp.md lists, and ONNXRUNTIME_ROOT (scripts/onnxruntime_sdk).
"""
import os
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT

HOW = "see docs/cpp.md"
CONFIGURATIONS = {"release": [], "sanitize": ["-DDYVIT_SANITIZE=ON"]}


def tools():
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if not shutil.which("cmake") or not compiler:
        pytest.skip(f"{'a C++ compiler' if shutil.which('cmake') else 'cmake'} is missing: {HOW}")
    if not os.environ.get("ONNXRUNTIME_ROOT"):
        pytest.skip(f"ONNXRUNTIME_ROOT is not set: make one with scripts/onnxruntime_sdk, {HOW}")


def call(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What C++ is compared with, made once by the first configuration."""
    return tmp_path_factory.mktemp("cpp") / "reference"


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_cpp_runtime_builds_and_passes_its_tests(name, reference, tmp_path):
    tools()
    code, text = call("cmake", "-S", ROOT / "cpp", "-B", tmp_path, "-DCMAKE_BUILD_TYPE=Release",
                      f"-DPython3_EXECUTABLE={sys.executable}", f"-DDYVIT_REFERENCE={reference}",
                      *CONFIGURATIONS[name])
    missing = [line for line in text.splitlines() if "Could NOT find" in line or "Could not find" in line
               or "dyvit: no tests" in line]
    if missing:                             # a package; any other trouble of configuring is a failure
        pytest.skip(f"{missing[0].strip()}: {HOW}")
    assert code == 0, text
    code, text = call("cmake", "--build", tmp_path, "--parallel", os.cpu_count() or 1)
    assert code == 0 and "warning:" not in text, text
    code, text = call("ctest", "--test-dir", tmp_path, "--output-on-failure", "--no-tests=error")
    assert code == 0 and "Skipped" not in text, text
