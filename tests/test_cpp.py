"""What docs/cpp.md says is so: its commands are run, its example is compiled, the C++ tests pass, with sanitizers too.

It needs cmake, a C++ compiler, the packages that the page lists, and ONNXRUNTIME_ROOT (scripts/onnxruntime_sdk). Engine
plans are tested where TENSORRT_ROOT is set as well.
"""
import os
import re
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT

PAGE = (ROOT / "docs" / "cpp.md").read_text() if (ROOT / "docs" / "cpp.md").exists() else ""
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
CPP, CMAKE = (re.findall(rf"```{kind}\n(.*?)```", PAGE, re.S) for kind in ("cpp", "cmake"))
PROGRAMS = ("dyvit-run", "dyvit-bench")


def lines_with(part):
    """The commands of the page that have `part`; at least one."""
    found = [line for line in COMMANDS if part in line]
    assert found, f"docs/cpp.md has no command with {part!r}"
    return found


class Project:
    """A folder that looks like the project's root, in which the page's commands are typed."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("cpp", "dyvit_deploy", "scripts"):
            (folder / name).symlink_to(ROOT / name)
        # CMake takes the Python of an active virtual environment.
        self.environment = os.environ | {"VIRTUAL_ENV": sys.prefix}

    def type(self, line):
        """Types a line of the page; its exit code and everything that it printed."""
        done = subprocess.run(["bash", "-c", line], cwd=self.folder, env=self.environment, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return done.returncode, done.stdout

    def build_and_test(self, line):
        """A line that configures, builds and tests; skips where a package is missing."""
        configure, build, test = line.split(" && ")
        code, text = self.type(configure)
        missing = [told for told in text.splitlines() if re.search("could not find|no tests;", told, re.I)]
        if missing:                         # any other trouble is a failure
            pytest.skip(f"{missing[0].strip()}: see docs/cpp.md")
        assert code == 0, text
        code, text = self.type(f"{build} --parallel {os.cpu_count()}")
        assert code == 0 and "warning:" not in text, text
        code, text = self.type(f"{test} --output-on-failure --no-tests=error")
        assert code == 0 and "Skipped" not in text, text


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The project, built and tested as a release."""
    tools = {"docs/cpp.md": PAGE, "cmake": shutil.which("cmake"),
             "a C++ compiler": os.environ.get("CXX") or shutil.which("c++"),
             "ONNXRUNTIME_ROOT (scripts/onnxruntime_sdk makes it)": os.environ.get("ONNXRUNTIME_ROOT")}
    if missing := [name for name, found in tools.items() if not found]:
        pytest.skip(f"missing: {', '.join(missing)}; see docs/cpp.md")
    pytest.importorskip("sklearn", reason="the reference of the C++ tests shows scenes of digits")
    project = Project(tmp_path_factory.mktemp("project"))
    [line] = (line for line in lines_with("-S cpp") if "SANITIZE" not in line)
    project.build_and_test(line)
    reference = project.folder / "build/tests/reference"
    for name, source in {"model.onnx": "digits-float32.onnx", "photo.jpg": "plain.jpg",
                         "another.png": "scene0.png"}.items():
        shutil.copy(reference / source, project.folder / name)
    return project


@pytest.mark.cpp
def test_the_cpp_tests_pass_with_sanitizers(project):
    [line] = lines_with("SANITIZE")
    reference = f"-DDYVIT_REFERENCE={project.folder}/build/tests/reference"  # the same data
    project.build_and_test(line.replace("-DDYVIT_SANITIZE=ON", f"-DDYVIT_SANITIZE=ON {reference}"))


@pytest.mark.cpp
@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("./build/")])
def test_the_programs_run_as_the_page_says(project, line):
    code, text = project.type(line.replace("--seconds 5", "--seconds 0.1"))
    assert code == 0 and len(text.splitlines()) > 3, text


@pytest.mark.cpp
def test_the_example_builds_against_the_installed_library_and_within_a_project(project):
    example = project.folder / "classify"
    example.mkdir()
    (example / "main.cpp").write_text(CPP[0])
    (example / "CMakeLists.txt").write_text(CMAKE[0])
    for line in (*lines_with("--install"), *lines_with("-S classify")):
        code, text = project.type(line)
        assert code == 0, text
    [run] = lines_with("classify model.onnx")
    code, installed = project.type(run)
    assert code == 0 and len(installed.splitlines()) == 3, installed
    code, text = project.type(run.replace("photo.jpg", "missing.jpg"))
    assert code == 1 and text == "missing.jpg does not exist; check the path.\n"

    [added] = re.findall(r"`(add_subdirectory\(.*?\))`", PAGE)
    (example / "CMakeLists.txt").write_text(CMAKE[0].replace("find_package(dyvit REQUIRED)",
                                                             added.replace("PATH/TO", str(project.folder))))
    code, text = project.type("cmake -S classify -B within && cmake --build within --target classify --parallel 2")
    assert code == 0, text
    assert project.type(run.replace("classify/build", "within")) == (0, installed)


@pytest.mark.cpp
def test_a_fixed_batch_leaves_no_arithmetic_on_shapes(project, tmp_path):
    """dyvit-bench relies on it: what ONNX Runtime then still places on the CPU has no CUDA kernel."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    operators = {}
    for batch in (None, 1):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        if batch:
            options.add_free_dimension_override_by_name("batch", batch)
        ort.InferenceSession(project.folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        operators[batch] = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert "Shape" in operators[None] and "Shape" not in operators[1]


@pytest.mark.cpp
def test_the_installed_programs_find_their_library(project):
    for line in lines_with("--install"):
        assert project.type(line)[0] == 0
    for program in PROGRAMS:
        code, text = project.type(f"./sdk/dyvit/bin/{program} --help")
        assert code == 0 and "--threads" in text


@pytest.mark.skipif(not PAGE, reason="docs/cpp.md is not here")
def test_commands_that_are_not_run_say_what_they_need():
    blocks = re.findall(r"^```(\w*)\n(.*?)```", PAGE, re.M | re.S)
    assert {kind for kind, _ in blocks} == {"", "sh", "cpp", "cmake"}
    assert all(block.startswith("# needs ") for kind, block in blocks if not kind)


def test_the_cpp_code_keeps_to_the_house_rules():
    files = [path for path in (ROOT / "cpp").rglob("*") if path.suffix in (".cpp", ".h", ".py")]
    assert all(len(path.read_text().splitlines()) <= 400 for path in files)
    assert all(len(line) <= 130 for path in files for line in path.read_text().splitlines())


def test_the_resize_graphs_are_those_of_their_script():
    pytest.importorskip("onnx")
    subprocess.run([sys.executable, ROOT / "cpp" / "tools" / "make_resize_graphs.py", "--check"], check=True)


@pytest.mark.cpp
def test_the_sdk_script_makes_headers_and_library(tmp_path):
    """Reads the machine's own package mirror; where there is none, it says so in one sentence."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        pytest.skip("apt-get or dpkg-deb is missing: the script is for Debian")
    done = subprocess.run([ROOT / "scripts" / "onnxruntime_sdk", tmp_path], env=os.environ | {"PYTHON": sys.executable},
                          capture_output=True, text=True)
    if done.returncode and ("cannot be had" in done.stderr or "no source" in done.stderr):
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "include" / "onnxruntime_cxx_api.h").exists()
    assert (tmp_path / "lib" / "libonnxruntime.so").exists()
