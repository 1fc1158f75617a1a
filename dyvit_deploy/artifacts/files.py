"""How files are read and written: hashes, checks before long work, and writing that leaves nothing half-written."""
from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import ArtifactError

TIMM_PREFIX = "timm:"


def is_timm(path: object) -> bool:
    """True for `timm:NAME`, which names timm's pretrained weights where a checkpoint file is expected."""
    return str(path).startswith(TIMM_PREFIX)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()                                              # Python 3.10 has no file_digest
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def require_file(path: str | Path) -> Path:
    """`path` as a Path when it is a readable, non-empty file; ArtifactError otherwise."""
    path = Path(path)
    try:
        status = path.stat()
    except OSError as error:
        found = "does not exist" if error.errno == errno.ENOENT else f"cannot be opened ({error.strerror})"
        raise ArtifactError(f"{path} {found}; check the path.") from error
    if stat.S_ISDIR(status.st_mode):
        raise ArtifactError(f"{path} is a folder; name a file in it.")
    if status.st_size == 0:
        raise ArtifactError(f"{path} is empty; it was probably not written to the end, make or copy it again.")
    if not os.access(path, os.R_OK):
        raise ArtifactError(f"{path} may not be read; change its permissions.")
    return path


def require_source(path: str | Path) -> Path:
    """`path` as a Path when it is such a file, or `timm:NAME`; ArtifactError otherwise."""
    return Path(path) if is_timm(path) else require_file(path)


def size_mib(path: Path) -> float:
    """Size of an artifact in MiB; an OpenVINO model is its .xml and the .bin beside it."""
    files = [path, path.with_suffix(".bin")] if path.suffix.lower() == ".xml" else [path]
    return sum(file.stat().st_size for file in files) / 2**20


def make_folder(path: str | Path) -> Path:
    """Creates folder `path` when it is missing, and makes sure that it can be written to."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ArtifactError(f"Nothing can be written to {path} ({error.strerror}); choose another folder.") from error
    return path


def check_target(path: str | Path) -> Path:
    """`path`, once it is sure that a file can be written there; ask before long work, not after."""
    path = Path(path)
    if os.path.isdir(path):                                                # unlike Path's, this never raises
        raise ArtifactError(f"{path} is a folder; name the file to write.")
    make_folder(path.parent)
    return path


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which replaces it only when the block succeeds.

    An existing file survives any failure, a full disk included; nothing half-written is left. A link
    is followed; a device or pipe is written to as it is.
    """
    path = check_target(path)
    if os.path.exists(path) and not os.path.isfile(path):
        yield path
        return
    path = Path(os.path.realpath(path))
    temporary = path.parent / f".dyvit-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}"
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)                                              # safetensors makes private files
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(f"{path} could not be written ({error.strerror or error}); "
                            "free space or choose another place.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def hash_files(files: Iterable[str | Path]) -> dict[str, str]:
    """The sha256 of those that are files, by their path as given."""
    return {str(file): sha256(Path(file)) for file in files if not is_timm(file) and Path(file).is_file()}
