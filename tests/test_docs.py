"""What the pages of docs/ say is so: their lines are typed, their Python asks a real server, their pictures are there.
The manifests are held by test_manifests.py, docs/cpp.md by test_cpp.py."""
import os
import re
import shlex
import subprocess
import sys

import pytest
from helpers import ROOT, SCENES, code_blocks, digit_scenes, digits_shop, dyvit, needs, needs_triton

from dyvit_deploy.serving.repository import VERSION_COMPATIBLE

DOCS = ROOT / "docs"
PAGES = ["triton.md", "scaling.md", "visualize.md"]
NEEDS = {"triton.md": "tritonclient", "visualize.md": "matplotlib"}       # what every line of a page needs


def blocks(page):
    return code_blocks(f"docs/{page}")


def commands(page):
    return [line.split("  #")[0].strip() for kind, text in blocks(page) if kind == "sh" for line in text.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return digits_shop(tmp_path_factory.mktemp("docs"))


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_here_or_says_what_it_needs(page):
    for kind, text in blocks(page):
        assert kind in ("sh", "python") or (kind == "" and re.match(r"# (needs|runs until) ", text)), text
    assert {line.split()[0] for line in commands(page)} <= {"dyvit", "curl"}


@pytest.mark.parametrize("page", [*DOCS.glob("*.md"), ROOT / "README.md"], ids=lambda path: path.name)
def test_every_picture_and_page_that_is_linked_is_there(page):
    for link in re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).is_file(), link


# The exports of the Triton page take a minute, and stand beside the tests of the servers that run them.
@pytest.mark.parametrize("scenes", SCENES)
@pytest.mark.parametrize("page", [pytest.param("triton.md", marks=pytest.mark.triton), *PAGES[1:]])
def test_the_commands_of_a_page_work_as_they_stand(page, scenes, tmp_path, monkeypatch):
    """Those that start a server or Ray are for the next tests."""
    pytest.importorskip(NEEDS.get(page, "dyvit_deploy"))
    monkeypatch.chdir(digits_shop(tmp_path))
    lines = [line for line in commands(page) if line.startswith("dyvit") and "--runner ray" not in line]
    assert len(lines) >= 2
    with digit_scenes(scenes):
        for line in lines:
            words = shlex.split(line)
            if words[1] != "serve":
                type_line(line)


@pytest.mark.triton
@needs_triton
def test_the_servers_of_the_triton_page_start_as_they_stand(tmp_path, monkeypatch):
    """Each after the line before it, which exports its repository."""
    monkeypatch.chdir(digits_shop(tmp_path))
    lines = [line for line in commands("triton.md") if line.startswith("dyvit")]
    served = [number for number, line in enumerate(lines) if line.startswith("dyvit serve")]
    assert served
    for number in served:
        type_line(lines[number - 1])
        type_line(lines[number])


def type_line(line):
    words = shlex.split(line)
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


@pytest.mark.ray
@needs("ray", "ray")
def test_the_line_for_ray_works_as_it_stands(folder):
    [line] = [line for line in commands("scaling.md") if "--runner ray" in line]
    result = subprocess.run([sys.executable, "-m", *line.replace("dyvit", "dyvit_deploy", 1).split()], cwd=folder,
                            env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len((folder / "ray.csv").read_text().splitlines()) == 3
