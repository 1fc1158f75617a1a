"""What the README says is so: its commands, its Python, its file tree, its tables."""
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


def test_the_pipeline_has_at_most_8_lines_and_stands_on_the_first_screen():
    blocks = re.findall(r"```\n(.*?)```", README, re.S)
    assert len(blocks[1].strip().splitlines()) <= 8
    assert README.index(blocks[1]) < 1500


def test_the_python_example_runs(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the example uses the digit scenes")
    [code] = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in code.splitlines() if line and not line.startswith("import")]) <= 8
    monkeypatch.chdir(tmp_path)

    def shipped(config):                    # training takes the best part of an hour
        (tmp_path / config.out).mkdir()
        shutil.copy(ROOT / "dyvit_deploy/demo/digits-s.safetensors", tmp_path / config.out / "best.safetensors")
    monkeypatch.setattr(dv, "train", shipped)
    exec(compile(code.replace("batches=(1, 8)", "batches=(1,), seconds=0.5"), "README.md", "exec"), {})


def test_the_file_tree_is_the_one_on_disk():
    tree = README.split("dyvit_deploy/\n")[1].split("benchmarks/")[0]
    told = {line.split()[0] for line in tree.splitlines() if line.strip()}
    package = ROOT / "dyvit_deploy"
    there = {p.relative_to(package).as_posix() for p in package.rglob("*.py") if p.name != "__init__.py"}
    assert told == there | {"demo/"}


def test_the_tables_are_those_of_the_measured_results():
    subprocess.run([sys.executable, ROOT / "benchmarks/tables.py", "--check"], check=True)
