"""The README is up to date: its commands and its Python run, its tables show the measured results."""
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT

import dyvit_deploy as dv
from dyvit_deploy.cli.main import main

README = (ROOT / "README.md").read_text()
COMMANDS = [line.split("#")[0] for line in re.findall(r"(?:^|[`&] ?)(dyvit [^`\n]+)", README, re.M)]


@pytest.mark.parametrize("line", sorted(set(COMMANDS)))
def test_every_command_and_option_exists(line):
    words = [w for w in shlex.split(line)[1:] if not w.startswith("...")]
    command = main.commands[words[0]]
    options = {o for p in command.params for o in p.opts} | {"--help"}
    assert {w for w in words if w.startswith("-")} <= options
    assert len(words) > 1 or words[0] in ("quickstart", "models", "doctor", "train", "calibrate")


def test_the_pipeline_has_at_most_8_lines_and_is_on_the_first_screen():
    blocks = re.findall(r"```\n(.*?)```", README, re.S)
    assert len(blocks[1].strip().splitlines()) <= 8
    assert README.index(blocks[1]) < 1500


def test_the_python_example_runs(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the example uses the digit scenes")
    [code] = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in code.splitlines() if line and not line.startswith("import")]) <= 8
    monkeypatch.chdir(tmp_path)

    # Training would take most of an hour.
    def shipped(config):
        (tmp_path / config.out).mkdir()
        shutil.copy(ROOT / "dyvit_deploy/demo/digits-s.safetensors", tmp_path / config.out / "best.safetensors")
    monkeypatch.setattr(dv, "train", shipped)
    exec(compile(code.replace("batches=(1, 8)", "batches=(1,), seconds=0.5"), "README.md", "exec"), {})


def test_the_tables_show_the_measured_results():
    subprocess.run([sys.executable, ROOT / "benchmarks/tables.py", "--check"], check=True)
