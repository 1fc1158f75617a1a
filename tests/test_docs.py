"""What the pages of docs/ say is so: their lines are typed, their Python asks a real server, their pictures are there.
The manifests are held by test_manifests.py, docs/cpp.md by test_cpp.py."""
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, dyvit, needs, needs_triton
from PIL import Image

from dyvit_deploy.config import KeepRequest, LoadConfig
from dyvit_deploy.demo.quickstart import STUDENT
from dyvit_deploy.export.config import ExportConfig
from dyvit_deploy.export.onnx import export_onnx
from dyvit_deploy.serving.export import export_repository
from dyvit_deploy.serving.repository import VERSION_COMPATIBLE
from dyvit_deploy.serving.server import Ports, Server, find_triton

DOCS = ROOT / "docs"
PAGES = ["triton.md", "scaling.md", "visualize.md"]
NEEDS = {"triton.md": "tritonclient", "visualize.md": "matplotlib"}       # what every line of a page needs


def blocks(page):
    """The fenced blocks of a page: their kind and text."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (DOCS / page).read_text(), re.S | re.M)


def commands(page):
    return [line.split("  #")[0].strip() for kind, text in blocks(page) if kind == "sh" for line in text.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the pages take as there: a checkpoint, its graph, photos."""
    pytest.importorskip("sklearn", reason="the pages use the digit scenes")
    folder = tmp_path_factory.mktemp("docs")
    (folder / "ckpt.safetensors").write_bytes(STUDENT.read_bytes())
    export_onnx(STUDENT, folder / "model.onnx", ExportConfig(with_tokens=True))
    (folder / "photos").mkdir()
    for name in ("photo.jpg", "another.png", "photos/1.jpg", "photos/2.png"):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (90, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_here_or_says_what_it_needs(page):
    for kind, text in blocks(page):
        assert kind in ("sh", "python") or (kind == "" and re.match(r"# (needs|runs until) ", text)), text
    assert {line.split()[0] for line in commands(page)} <= {"dyvit", "curl"}


@pytest.mark.parametrize("page", [*DOCS.glob("*.md"), ROOT / "README.md"], ids=lambda path: path.name)
def test_every_picture_and_page_that_is_linked_is_there(page):
    for link in re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).is_file(), link


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_work_as_they_stand(folder, page, monkeypatch):
    pytest.importorskip(NEEDS.get(page, "dyvit_deploy"))
    monkeypatch.chdir(folder)
    lines = [line for line in commands(page) if line.startswith("dyvit") and "--runner ray" not in line]
    assert len(lines) >= 2
    for line in lines:
        words = shlex.split(line)
        if words[1] == "serve" and "DYVIT_TRITON" not in os.environ:
            continue
        if "--openvino" in words:
            pytest.importorskip("openvino")
        if "--parquet" in words:
            pytest.importorskip("pyarrow")
        result = dyvit(*words[1:])
        assert result.exit_code == 0, f"{line}: {result.output}"


def test_the_pages_name_the_option_that_version_compatible_engines_need():
    for page in ("triton.md", "scaling.md"):
        assert VERSION_COMPATIBLE in (DOCS / page).read_text(), page
    assert "Failed to set cuda graph shape" in " ".join((DOCS / "triton.md").read_text().split())


@needs("ray", "ray")
def test_the_line_for_ray_works_as_it_stands(folder):
    [line] = [line for line in commands("scaling.md") if "--runner ray" in line]
    result = subprocess.run([sys.executable, "-m", *line.replace("dyvit", "dyvit_deploy", 1).split()], cwd=folder,
                            env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len((folder / "ray.csv").read_text().splitlines()) == 3


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    repository = tmp_path_factory.mktemp("served") / "repository"
    export_repository(folder / "ckpt.safetensors", repository)
    with Server(find_triton(), repository, Ports.from_first(None), ["onnxruntime"]) as server:
        yield server


@needs_triton
def test_the_python_of_the_triton_page_asks_a_server(folder, server, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    found = [text for kind, text in blocks("triton.md") if kind == "python" and "keep_ratio" not in text]
    for text in found:
        run_python(text, server)
    printed = capsys.readouterr().out
    assert len(found) == 2 and "(8, 10)" in printed and re.search(r"b'-?[\d.]+:\d:\d'", printed)


@needs_triton
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_line_that_asks_for_readiness_is_answered(server):
    [readiness] = [line for line in commands("triton.md") if line.startswith("curl")]
    subprocess.run(shlex.split(to_server(readiness, server)), check=True)


@needs_triton
def test_the_python_for_a_router_asks_a_server(folder, tmp_path, monkeypatch, capsys):
    several = LoadConfig(keep=KeepRequest(ratios=(0.9, 0.5)))
    export_repository(folder / "ckpt.safetensors", tmp_path / "repository", load=several)
    monkeypatch.chdir(folder)
    [text] = [text for kind, text in blocks("triton.md") if kind == "python" and "keep_ratio" in text]
    with Server(find_triton(), tmp_path / "repository", Ports.from_first(None), ["onnxruntime"]) as server:
        for ratio in ("0.5", "0.9"):
            run_python(text.replace('"0.5"', f'"{ratio}"'), server)
    low, high = capsys.readouterr().out.strip().split("]]\n")
    assert low.count(".") >= 10 and low != high.removesuffix("]]")


def to_server(text, server):
    return text.replace(":8000", f":{server.ports.http}").replace(":8001", f":{server.ports.grpc}")


def run_python(text, server):
    exec(compile(to_server(text, server), "the page", "exec"), {})


@needs_triton
def test_the_python_in_a_repositorys_own_readme_asks_its_server(folder, tmp_path, monkeypatch, capsys):
    export_repository(folder / "ckpt.safetensors", tmp_path / "repository")
    [text] = re.findall(r"```python\n(.*?)```", (tmp_path / "repository/README.md").read_text(), re.S)
    monkeypatch.chdir(folder)
    with Server(find_triton(), tmp_path / "repository", Ports.from_first(None), ["onnxruntime"]) as server:
        run_python(text, server)
    assert len(capsys.readouterr().out.split(":")) == 7
