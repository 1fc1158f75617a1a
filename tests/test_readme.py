"""What the README says is so: its commands, its Python, the files it names, its tables. Links are test_docs.py's."""
import os
import re
import shlex
import shutil
import subprocess
import sys

import click
import pytest
from helpers import FEW_SCENES, ROOT, code_blocks, digit_scenes

import dyvit_deploy as dv
from dyvit_deploy.cli.main import main

README = (ROOT / "README.md").read_text()
COMMANDS = [line.split("#")[0] for line in re.findall(r"(?:^|[`&] ?)(dyvit [^`\n]+)", README, re.M)]
TYPED = [line.split("  #")[0] for kind, text in code_blocks("README.md") if kind in ("", "sh")
         for line in text.splitlines() if line.startswith("dyvit ")]
PYTHON = [text for kind, text in code_blocks("README.md") if kind == "python"]


@pytest.mark.parametrize("line", sorted(set(COMMANDS)))
def test_every_command_and_option_exists(line):
    words = [w for w in shlex.split(line)[1:] if not w.startswith("...")]
    command = main.commands[words[0]]
    options = {o for p in command.params for o in p.opts} | {"--help"}
    assert {w for w in words if w.startswith("-")} <= options


@pytest.mark.parametrize("line", sorted(set(TYPED)))
def test_every_line_of_a_block_can_be_typed_as_it_stands(line):
    """Its values are of the right kind, and what the command needs is there."""
    name, *words = shlex.split(line)[1:]
    with main.make_context("dyvit", [name]) as parent:
        context = main.commands[name].make_context(name, words, parent=parent)
    assert isinstance(context, click.Context) and not context.args


def test_there_is_something_to_type():
    assert len(TYPED) > 5 and PYTHON


@pytest.mark.parametrize("code", PYTHON)
def test_the_python_examples_run(code, tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the example uses the digit scenes")
    monkeypatch.chdir(tmp_path)

    # Training would take most of an hour.
    def shipped(config):
        (tmp_path / config.out).mkdir()
        shutil.copy(ROOT / "dyvit_deploy/demo/digits-s.safetensors", tmp_path / config.out / "best.safetensors")
    monkeypatch.setattr(dv, "train", shipped)
    with digit_scenes(FEW_SCENES):
        quick = code.replace("batches=(1, 8)", "batches=(1,), seconds=0.1, memory=False")
        exec(compile(quick, "README.md", "exec"), {})


def test_every_file_that_it_names_is_there():
    """Between backquotes, from a folder of the repository on."""
    folders = "|".join(sorted(path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."))
    named = set(re.findall(rf"`((?:{folders})/[\w./-]*\w)`", README))
    assert named and not [name for name in sorted(named) if not (ROOT / name).exists()]


def test_the_tables_are_those_of_the_measured_results():
    done = subprocess.run([sys.executable, ROOT / "benchmarks/tables.py", "--check"], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr + done.stdout
