"""What the shell, the locale, the file system and limits do to a command: it works, or says one sentence."""
import errno
import io
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import HANGS, ROOT, dyvit, photo_folder, tiny_graph
from PIL import Image

from dyvit_deploy.cli.main import main
from dyvit_deploy.cli.terminal import accept_any_text
from dyvit_deploy.errors import BackendError, is_out_of_memory
from dyvit_deploy.parity import compare
from dyvit_deploy.runners.ort import OrtRunner


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return tiny_graph(tmp_path_factory.mktemp("surroundings"))


def typed(*arguments, **options):
    """The command line in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    done = subprocess.run([sys.executable, "-m", "dyvit_deploy", *arguments], env=environment, capture_output=True,
                          timeout=HANGS, **options)
    assert b"Traceback" not in done.stderr + done.stdout, done.stderr.decode(errors="replace")
    return done


@pytest.mark.parametrize("arguments", [("inspect", ""), ("report", ""), ("eval", "m.onnx", "--data", ""),
                                       ("quickstart", "--out="), ("sweep", "c.safetensors", "-o", "")])
def test_an_empty_path_is_not_taken_for_the_current_directory(arguments):
    result = dyvit(*arguments)
    assert result.exit_code == 2 and "is empty" in result.output and "variable that is not set" in result.output


def test_a_current_directory_that_is_gone_is_one_sentence(tmp_path, monkeypatch):
    def gone():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")
    monkeypatch.setattr(os, "getcwd", gone)
    result = dyvit("inspect", tmp_path / "m.onnx")
    assert result.exit_code == 1 and "current directory does not exist any more" in result.output
    assert dyvit("--help").exit_code == 0


def test_an_umlaut_in_a_path_works_in_a_locale_without_umlauts(graph, tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), "bäume".encode())
    os.mkdir(folder)
    shutil.copy(graph, os.path.join(folder, "mä.onnx".encode()))
    locale = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    photos = photo_folder(tmp_path / "photos", 1)
    for command, more in (("inspect", ()), ("predict", (photos,))):
        done = typed(command, os.path.join(folder, "mä.onnx".encode()), *more, env=locale)
        assert done.returncode == 0 and "mä.onnx".encode() in done.stdout + done.stderr, done.stderr


def test_a_name_that_is_not_utf_8_is_one_sentence_or_works(graph, tmp_path):
    odd = os.path.join(os.fsencode(tmp_path), b"m\xe4.onnx")
    shutil.copy(graph, odd)
    result = dyvit("inspect", os.fsdecode(odd))
    assert result.exit_code == 1 and "is not UTF-8" in result.output and "rename it" in result.output
    photos = photo_folder(tmp_path / "photos", 2)
    os.rename(photos / "000.png", os.path.join(os.fsencode(photos), b"\xe4.png"))
    assert dyvit("predict", graph, photos, "--csv", tmp_path / "rows.csv").exit_code == 0
    assert dyvit("visualize", graph, "--data", photos, "-o", tmp_path / "figures").exit_code == 0


def test_an_image_whose_name_is_only_a_suffix_is_an_image(graph, tmp_path):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / ".png")
    result = dyvit("predict", graph, tmp_path / ".png")
    assert result.exit_code == 0 and ".png" in result.stdout


def test_text_that_the_terminal_lacks_is_replaced_and_odd_names_keep_their_bytes(monkeypatch):
    for encoding, expected in (("ascii", b"1.5? \xe4.png"), ("utf-8", "1.5² ".encode() + b"\xe4.png")):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        accept_any_text()
        print("1.5² " + os.fsdecode(b"\xe4.png"), end="", flush=True)
        assert sys.stdout.buffer.getvalue() == expected


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS")
def test_too_little_memory_for_a_library_is_one_sentence(graph):
    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))
    done = typed("inspect", graph, preexec_fn=limited)
    assert done.returncode == 1 and b"Not enough memory to load a library" in done.stderr
    assert b"--batch" not in done.stderr


@pytest.mark.parametrize("arguments, batch", [(("check", "{}", "{}"), True), (("inspect", "{}"), False)])
def test_a_smaller_batch_is_advised_only_to_commands_that_have_one(graph, monkeypatch, arguments, batch):
    def full(*_, **__):
        raise MemoryError("Unable to allocate 8.00 TiB")
    monkeypatch.setattr(compare, "compare", full)
    monkeypatch.setattr("dyvit_deploy.inspect.artifact.load_graph", full)
    result = CliRunner().invoke(main, [argument.format(graph) for argument in arguments])
    assert result.exit_code == 1 and "Not enough memory (Unable to allocate 8.00 TiB)" in result.output
    assert ("--batch" in result.output) is batch


def test_a_runtime_without_memory_is_not_said_to_have_a_bad_input(graph, monkeypatch):
    with OrtRunner(graph, device="cpu") as runner:
        class Full:
            def run(self, *_):
                raise RuntimeError("Failed to allocate memory for requested buffer of size 8796093022208")
        monkeypatch.setattr(runner, "_session", Full())
        with pytest.raises(BackendError, match="use a smaller batch"):
            runner.infer(np.zeros((1, 3, 32, 32), np.float32))


@pytest.mark.parametrize("error, expected", [
    (MemoryError(), True), (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
    (RuntimeError("can't start new thread"), True),
    (ImportError("libtorch.so: failed to map segment from shared object"), True), (OSError(errno.ENOENT, "no"), False),
    (ImportError("libgomp.so.1: cannot open shared object file"), False), (RuntimeError("shapes differ"), False)])
def test_only_errors_about_memory_are_taken_for_such(error, expected):
    assert is_out_of_memory(error) is expected
