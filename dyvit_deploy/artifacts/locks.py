"""One process at a time per file: locks, and the removal of what killed processes left behind.

Whoever writes NAME holds the lock `.dyvit-lock-NAME` beside it, and writes to the file `.dyvit-tmp-NAME` or the folder
`.dyvit-dir-NAME` first. Locks are those of the operating system, which releases them when a process is killed. A
temporary file whose lock is free is therefore left over, whatever process made it.
"""
from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, ConfigError
from ..optional import require

TEMPORARY = re.compile(r"\.dyvit-(?:lock|tmp|dir)-(?P<key>.+)", re.DOTALL)
# A folder of temporary files in TMPDIR, named by `scratch_folder`.
SCRATCH = re.compile(r"dyvit-[a-z]+-[0-9a-f]{16}")
# Bytes; with the prefix, longer names would exceed what file systems take.
LONGEST = 200
# Seconds that a write waits for another process that writes the same file, and a command for one that only looks for
# leftovers.
WAIT, GLANCE = 10.0, 0.5


def temporary_path(path: Path, kind: str = "tmp") -> Path:
    """Where the content of `path` is written before it replaces `path`; only the holder of its lock may use it.

    Args:
        kind: "tmp" for a file of the same suffix, "dir" for a folder, "lock" for the lock.
    """
    return path.with_name(f".dyvit-{kind}-{_key(path.name)}")


def _key(name: str) -> str:
    """`name`, or a hash with its suffix if it is too long."""
    encoded, suffix = os.fsencode(name), os.path.splitext(name)[1]
    return name if len(encoded) <= LONGEST else hashlib.sha256(encoded).hexdigest() + suffix[:20]


def _lock(path: Path) -> Any:
    # A singleton can be acquired again by the thread that holds it.
    return require("filelock").FileLock(temporary_path(path, "lock"), is_singleton=True)


@contextlib.contextmanager
def sole_use(path: str | Path, name: str | Path | None = None) -> Iterator[Path]:
    """Holds the lock of `path` for a whole command, and removes what killed commands left in its folder.

    A missing folder is created, and removed again if it stays empty. Yields `path` with links resolved.

    Args:
        name: what the error calls it; `path` by default.

    Raises:
        ConfigError: another command, or another thread of this process, holds it.
        ArtifactError: the folder cannot be written.
    """
    path = Path(os.path.realpath(path))
    # A device or a pipe.
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        with _held(path, GLANCE, name or path, again=False):
            for kind in ("tmp", "dir"):
                remove(temporary_path(path, kind))
            remove_leftovers(path.parent)
            yield path
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Holds the lock of `path` for one write; waits for another writer. The thread that holds it may hold it again.

    Raises:
        ConfigError: another process still holds it after WAIT seconds.
        ArtifactError: the folder cannot be written.
    """
    with _held(path, WAIT, path, again=True):
        yield


@contextlib.contextmanager
def _held(path: Path, wait: float, name: str | Path, again: bool) -> Iterator[None]:
    lock = _lock(path)
    outer = not lock.is_locked
    try:
        if not outer and not again:
            raise TimeoutError
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait)
    # Without an errno, this is filelock's own error, or the one above: the lock is held.
    except TimeoutError as error:
        raise ConfigError(f"Another dyvit is writing {name}; wait until it is done, or name another place.") from error
    except OSError as error:
        # Left by another user's command.
        if os.path.lexists(lock.lock_file):
            raise ArtifactError(f"{lock.lock_file} cannot be locked ({error.strerror or error}); remove it if nobody "
                                f"is writing {name}.") from error
        raise ArtifactError(f"Nothing can be written to {path.parent} ({error.strerror or error}); choose another "
                            "folder.") from error
    try:
        yield
    finally:
        if outer:
            # Removed while it is held: who waits for it notices. Windows removes no open file, filelock does it there.
            with contextlib.suppress(OSError):
                os.unlink(lock.lock_file)
        lock.release()


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files in `folder` that no living process writes."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if found := TEMPORARY.fullmatch(entry.name):
                _remove_if_free(folder / found["key"], Path(entry.path))


def _remove_if_free(path: Path, leftover: Path) -> None:
    """Removes `leftover` if nobody holds the lock of `path`."""
    lock = _lock(path)
    # Of this thread's own.
    if lock.is_locked:
        return
    # TimeoutError, or a file that belongs to another user.
    with contextlib.suppress(OSError):
        lock.acquire(timeout=0)
        try:
            remove(leftover)
            with contextlib.suppress(OSError):
                os.unlink(lock.lock_file)
        finally:
            lock.release()


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it; links are not followed, errors are ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A new folder in TMPDIR, removed at the end of the block, or by the next call of any process after a kill.

    Raises OSError if it cannot be made.
    """
    parent = Path(tempfile.gettempdir())
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(parent)):
            if SCRATCH.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                _remove_if_free(parent / entry.name, Path(entry.path))
    remove_leftovers(parent)
    folder = parent / f"dyvit-{purpose}-{secrets.token_hex(8)}"
    # Locked before it exists, so that another process never takes it for a leftover.
    lock = _lock(folder)
    lock.acquire(timeout=WAIT)
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        remove(folder)
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


@contextlib.contextmanager
def own_tempdir(purpose: str) -> Iterator[None]:
    """A `scratch_folder` for the temporary files of other libraries, whose own would stay after a kill.

    It changes `tempfile.tempdir`, for all threads of the process.
    """
    with scratch_folder(purpose) as folder:
        before, tempfile.tempdir = tempfile.tempdir, str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before
