"""Two writers of one file, and what killed ones leave."""
import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading

import pytest
from helpers import HANGS, ROOT, SHARED

from dyvit_deploy.artifacts.files import atomic_write, unwritten, write_json, write_together
from dyvit_deploy.artifacts.locks import own_tempdir, remove_leftovers, scratch_folder, sole_use, writing
from dyvit_deploy.errors import ArtifactError, ConfigError

# Runs the code in its first argument, which says something; then waits for the end of its input.
HOLDER = """
import contextlib, sys
from pathlib import Path
from dyvit_deploy.artifacts.files import *
from dyvit_deploy.artifacts.locks import *
with contextlib.ExitStack() as stack:
    exec(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.read()
"""


class Holder:
    """Another process, in the middle of `code`."""

    def __init__(self, code, **environment):
        self.process = subprocess.Popen([sys.executable, "-c", HOLDER, code], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | environment)
        assert self.process.stdout.readline() == "ready\n"

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=HANGS)

    def end(self):
        self.process.communicate("", timeout=HANGS)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_second_command_is_refused_by_name_until_the_first_ends(tmp_path):
    target = tmp_path / "new" / "m.onnx"
    holder = Holder(f"stack.enter_context(sole_use({str(target)!r}))")
    with pytest.raises(ConfigError, match=f"Another dyvit is writing {target}; wait until it is done"), \
            sole_use(target):
        pass
    # Another file in that folder is free.
    with sole_use(tmp_path / "new" / "other.onnx"):
        pass
    holder.end()
    assert names(tmp_path) == []
    with sole_use(target):
        write_json(target, [1])
    assert names(target.parent) == ["m.onnx"]


def test_a_lock_that_cannot_be_opened_is_named(tmp_path):
    # As if it were another user's; links are not followed.
    (tmp_path / ".dyvit-lock-a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=r"/\.dyvit-lock-a cannot be locked .*; remove it"), \
            sole_use(tmp_path / "a"):
        pass
    assert names(tmp_path) == [".dyvit-lock-a"]


def test_the_holder_writes_and_another_thread_does_not_hold_it_too(tmp_path):
    refused = []

    def second():
        try:
            with sole_use(tmp_path / "a"):
                pass
        except ConfigError as error:
            refused.append(error)
    with sole_use(tmp_path / "a"):
        write_json(tmp_path / "a", [1])
        with pytest.raises(ConfigError), sole_use(tmp_path / "a"):
            pass
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(refused) == 1 and names(tmp_path) == ["a"]


def test_writers_that_wait_lose_nothing_of_one_another(tmp_path):
    def add():
        for _ in range(5):
            with writing(tmp_path / "count"), atomic_write(tmp_path / "count") as temporary:
                before = int((tmp_path / "count").read_text()) if (tmp_path / "count").exists() else 0
                temporary.write_text(str(before + 1))
    threads = [threading.Thread(target=add) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "count").read_text() == "30" and names(tmp_path) == ["count"]


def test_the_next_command_removes_what_a_killed_one_left_and_nothing_of_a_living_one(tmp_path):
    code = "file = stack.enter_context(atomic_write({!r})); file.write_text('half')"
    pair = "stack.enter_context(write_together({0!r}, {0!r} + '.data'))[1].write_text('half')"
    killed = [Holder(code.format(str(tmp_path / "k.json"))), Holder(pair.format(str(tmp_path / "k.onnx")))]
    living = Holder(code.format(str(tmp_path / "l.json")))
    for holder in killed:
        holder.kill()
    assert len(names(tmp_path)) == 6
    with sole_use(tmp_path / "other"):
        assert names(tmp_path) == [".dyvit-lock-l.json", ".dyvit-lock-other", ".dyvit-tmp-l.json"]
    living.end()
    assert names(tmp_path) == ["l.json"] and (tmp_path / "l.json").read_text() == "half"


def test_the_scratch_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = "(stack.enter_context(scratch_folder('export')) / 'large').write_text('x')"
    killed, living = (Holder(code, TMPDIR=str(tmp_path)) for _ in range(2))
    killed.kill()
    assert len(list(tmp_path.glob("dyvit-export-*"))) == 2
    with scratch_folder("bench") as folder:
        assert len(list(tmp_path.glob("dyvit-export-*/large"))) == 1 and folder.is_dir()
    living.end()
    assert names(tmp_path) == []


def test_temporary_files_of_other_libraries_are_removed_with_ours(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with own_tempdir("quantizer"):
        # As after a kill: nobody removes it.
        tempfile.mkdtemp(prefix="ort.quant.")
        assert not list(tmp_path.glob("ort.quant.*"))
    assert names(tmp_path) == [] and tempfile.gettempdir() == str(tmp_path)


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "a.tmp", "line\nbreak.json"])
def test_every_name_that_a_file_may_have_can_be_written(tmp_path, name):
    write_json(tmp_path / name, [1])
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [name]


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_without_locks_in_the_file_system_files_are_written_all_the_same(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def missing(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    monkeypatch.setattr(fcntl, "flock", missing)
    with sole_use(tmp_path / "a"):
        write_json(tmp_path / "a", [1])
    write_json(tmp_path / "a", [2])
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("number, advice", [
    (errno.ENOSPC, "free space"), (errno.EDQUOT, "free space"), (errno.EACCES, "change the permissions"),
    (errno.EROFS, "choose another place"), (errno.ENAMETOOLONG, "shorter name"), (errno.EMFILE, "open files"),
    (errno.EIO, "check the disk")])
def test_an_error_of_writing_is_told_as_what_it_is(tmp_path, number, advice):
    target = tmp_path / "a.json"
    with pytest.raises(ArtifactError, match=rf"could not be written .{os.strerror(number)}.; .*{advice}"), \
            atomic_write(target):
        raise OSError(number, os.strerror(number))
    assert ("free space" in str(unwritten(target, OSError(number, "x")))) == (advice == "free space")


def test_an_error_of_reading_while_writing_names_the_file_that_was_read(tmp_path):
    with pytest.raises(ArtifactError, match=rf"b\.json was not written, because {tmp_path}/gone/a cannot be used"), \
            atomic_write(tmp_path / "b.json"):
        (tmp_path / "gone" / "a").read_text()
    assert names(tmp_path) == []


def test_mistakes_in_our_own_code_are_not_told_as_errors_of_writing(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "b.json"):
        1 / 0  # noqa: B018


@pytest.mark.parametrize("stop", range(3))
def test_a_pair_that_was_interrupted_anywhere_is_written_by_the_repetition(tmp_path, monkeypatch, stop):
    pair = (tmp_path / "m.onnx", tmp_path / "m.onnx.data")

    def write(text):
        with write_together(*pair) as drafts:
            for draft in drafts:
                draft.write_text(text)
    write("old")
    replace, left = os.replace, [stop]

    def interrupted(source, target):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        replace(source, target)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        try:
            write("new")
        except KeyboardInterrupt:
            # What comes first is what its reader compares the others with.
            assert [file.read_text() for file in pair] == [["old", "old"], ["new", "old"]][stop]
    write("new")
    assert [file.read_text() for file in pair] == ["new", "new"] and names(tmp_path) == ["m.onnx", "m.onnx.data"]


@pytest.mark.skipif(not (SHARED / "cases").is_dir(), reason="the cases are not here")
@pytest.mark.parametrize("case, right", [
    ("two_sweeps.py", "was written by another sweep in the meantime"),
    ("timing_cache_lock.py", "files now: {'t.cache.old': b'bad: the user file', 't.cache': b'GOOD-OF-B'}")])
def test_the_cases_of_two_at_once_are_right(tmp_path, case, right):
    from helpers import tiny_checkpoint
    tiny_checkpoint(tmp_path).rename(tmp_path / "digits-s.safetensors")
    done = subprocess.run([sys.executable, SHARED / "cases" / case], capture_output=True, text=True, cwd=ROOT,
                          env=os.environ | {"BASE": str(tmp_path), "TMPDIR": str(tmp_path)})
    assert right in done.stdout + done.stderr and "FileNotFoundError" not in done.stdout
