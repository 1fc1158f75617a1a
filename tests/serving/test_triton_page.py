"""The Python and the requests of docs/triton.md, and of the README that a repository comes with, ask a real server."""
import re
import shlex
import shutil
import subprocess

import pytest
from helpers import code_blocks, digits_shop, needs_triton

from dyvit_deploy.config import KeepRequest, LoadConfig
from dyvit_deploy.serving.export import export_repository

pytestmark = [pytest.mark.triton, needs_triton]
PAGE = "docs/triton.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return digits_shop(tmp_path_factory.mktemp("docs"))


@pytest.fixture
def asked(triton, folder, tmp_path, monkeypatch):
    """Exports a repository, serves it meanwhile, and stands where the page does."""
    monkeypatch.chdir(folder)

    def serve(load=LoadConfig()):
        export_repository(folder / "ckpt.safetensors", tmp_path / "repository", load=load)
        return triton.loaded(tmp_path / "repository")
    return serve


def to_server(text, triton):
    ports = triton.server.ports
    return text.replace(":8000", f":{ports.http}").replace(":8001", f":{ports.grpc}")


def run_python(text, triton):
    exec(compile(to_server(text, triton), "the page", "exec"), {})


def pieces(routed):
    """The page's Python that asks a router, or the rest."""
    return [text for kind, text in code_blocks(PAGE) if kind == "python" and ("keep_ratio" in text) == routed]


def test_the_python_of_the_triton_page_asks_a_server(asked, capsys):
    found = pieces(routed=False)
    with asked() as triton:
        for text in found:
            run_python(text, triton)
    printed = capsys.readouterr().out
    assert len(found) == 2 and "(8, 10)" in printed and re.search(r"b'-?[\d.]+:\d:\d'", printed)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_line_that_asks_for_readiness_is_answered(asked):
    lines = [line for kind, text in code_blocks(PAGE) if kind == "sh" for line in text.splitlines()]
    [readiness] = [line for line in lines if line.startswith("curl")]
    with asked() as triton:
        assert subprocess.run(shlex.split(to_server(readiness, triton))).returncode == 0


def test_the_python_for_a_router_asks_a_server(asked, capsys):
    [text] = pieces(routed=True)
    with asked(LoadConfig(keep=KeepRequest(ratios=(0.9, 0.5)))) as triton:
        for ratio in ("0.5", "0.9"):
            run_python(text.replace('"0.5"', f'"{ratio}"'), triton)
    low, high = capsys.readouterr().out.strip().split("]]\n")
    assert low.count(".") >= 10 and low != high.removesuffix("]]")


def test_the_python_in_a_repositorys_own_readme_asks_its_server(asked, tmp_path, capsys):
    with asked() as triton:
        [text] = re.findall(r"```python\n(.*?)```", (tmp_path / "repository/README.md").read_text(), re.S)
        run_python(text, triton)
    assert len(capsys.readouterr().out.split(":")) == 7
