"""The commands in docs/report.md work."""
import re
import shlex

import pytest
from helpers import ROOT, dyvit, photo_folder

from dyvit_deploy.demo.quickstart import STUDENT

pytest.importorskip("sklearn", reason="the page uses the digit scenes")
pytest.importorskip("jinja2", reason="Jinja2 is missing: pip install 'dyvit-deploy[report]'")


def test_the_commands_in_the_document_work(tmp_path, monkeypatch):
    text = (ROOT / "docs/report.md").read_text()
    kinds = re.findall(r"^```(\w*)$", text, re.M)[::2]
    [block] = re.findall(r"^```sh\n(.*?)^```$", text, re.S | re.M)
    assert kinds == ["sh"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/best.safetensors").write_bytes(STUDENT.read_bytes())
    photo_folder(tmp_path / "photos", 5)
    monkeypatch.chdir(tmp_path)
    for line in block.splitlines():
        result = dyvit(*shlex.split(line.split("  #")[0].split(" #")[0])[1:])
        assert result.exit_code == 0, f"{line}: {result.output}"
    page = (tmp_path / "run/report.html").read_text()
    assert "within tolerance" not in page and page.count('class="gallery"') == 2 and (tmp_path / "my.html").is_file()
    assert ">not checked<" not in page and ">not evaluated<" not in page
