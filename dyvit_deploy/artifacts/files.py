"""Files: hashes, checks to run before long work, and atomic writes."""
from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from .locks import remove, temporary_path, writing

TIMM_PREFIX = "timm:"
# The configuration of a model, which timm and transformers write beside its weights.
CONFIG = "config.json"


def is_timm(path: object) -> bool:
    """True for `timm:NAME`, which is accepted instead of a checkpoint file and names timm's pretrained weights."""
    return str(path).startswith(TIMM_PREFIX)


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, or of the names and hashes of the files in a folder."""
    if path.is_dir():
        lines = [f"{file.name} {sha256(file)}" for file in sorted(path.iterdir()) if file.is_file()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    """`hashlib.file_digest` for Python 3.10, which lacks it."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def native_path(path: str | Path) -> str:
    """`path` for libraries that take text and open the file of its UTF-8 form, whatever the locale.

    Raises:
        ArtifactError: the name on disk is not UTF-8.
    """
    name = os.fsencode(path)
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"The name of {name.decode('utf-8', 'replace')} is not UTF-8, so most libraries cannot "
                            "open it; rename it.") from error


def require_file(path: str | Path) -> Path:
    """`path` as a Path. Raises ArtifactError unless it is a readable, non-empty file with a name in UTF-8."""
    path = Path(path)
    native_path(path)
    try:
        status = path.stat()
    except OSError as error:
        problem = "does not exist" if error.errno == errno.ENOENT else f"cannot be opened ({error.strerror})"
        raise ArtifactError(f"{path} {problem}; check the path.") from error
    if stat.S_ISDIR(status.st_mode):
        raise ArtifactError(f"{path} is a folder; name a file in it.")
    if status.st_size == 0:
        raise ArtifactError(f"{path} is empty; it was probably not written to the end, make or copy it again.")
    if not os.access(path, os.R_OK):
        raise ArtifactError(f"{path} may not be read; change its permissions.")
    return path


def require_source(path: str | Path) -> Path:
    """`path` as a Path. Raises ArtifactError unless it is `timm:NAME`, a folder with a model's configuration, or a
    readable, non-empty file."""
    return Path(path) if is_timm(path) or os.path.isfile(os.path.join(path, CONFIG)) else require_file(path)


def size_mib(path: Path) -> float:
    """Size of an artifact in MiB; an OpenVINO model consists of an .xml file and the .bin file beside it, a large ONNX
    graph of an .onnx file and the .onnx.data file beside it."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file()) / 2**20
    files = [path, path.with_suffix(".bin")] if path.suffix.lower() == ".xml" else [path]
    if path.suffix.lower() == ".onnx" and (data := path.with_name(f"{path.name}.data")).is_file():
        files.append(data)
    return sum(file.stat().st_size for file in files) / 2**20


def make_folder(path: str | Path) -> Path:
    """Creates the folder `path` if it is missing. Raises ArtifactError unless it is writable."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ArtifactError(f"Nothing can be written to {path} ({error.strerror}); choose another folder.") from error
    return path


def check_target(path: str | Path) -> Path:
    """`path` as a Path, with its folder created. Raises ArtifactError unless a file can be written there; call it
    before long work."""
    path = Path(path)
    # Unlike Path.is_dir, this never raises.
    if os.path.isdir(path):
        raise ArtifactError(f"{path} is a folder; name the file to write.")
    make_folder(path.parent)
    return path


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path, whose file replaces `path` if the block succeeds.

    After a failure, including a full disk, an existing file is unchanged and no partial file remains; what a killed
    process leaves is removed by the next write. Links are followed; a device or pipe is written directly.

    Raises:
        ArtifactError: it cannot be written.
        ConfigError: another process writes it.
    """
    path = check_target(path)
    if os.path.exists(path) and not os.path.isfile(path):
        yield path
        return
    path = Path(os.path.realpath(path))
    temporary = temporary_path(path)
    with writing(path):
        remove(temporary)
        try:
            with temporary.open("xb"):
                mode = temporary.stat().st_mode
            yield temporary
            # safetensors creates files that only their owner can read.
            temporary.chmod(mode)
            sync(temporary)
            os.replace(temporary, path)
        except OSError as error:
            raise unwritten(path, error) from error
        finally:
            remove(temporary)


@contextlib.contextmanager
def write_together(path: str | Path, *others: str | Path, obsolete: Path | None = None) -> Iterator[tuple[Path, ...]]:
    """Yields one temporary path per file of an artifact that is several files, with their final names in one folder;
    all of them replace the files of those names if the block succeeds.

    `path` is replaced first: a kill before the others are replaced leaves it with others that are missing or old. Its
    reader must notice that by their hashes, and a repetition finds the file that they belong to.

    Args:
        path, others: in one folder, and no links to elsewhere.
        obsolete: a file of the replaced artifact that is removed.

    Raises:
        ArtifactError: they cannot be written; nothing changed.
        ConfigError: another process writes them.
    """
    places = [check_target(file) for file in (path, *others)]
    main = Path(os.path.realpath(places[0]))
    folder = temporary_path(main, "dir")
    with writing(main):
        remove(folder)
        try:
            folder.mkdir()
            drafts = tuple(folder / place.name for place in places)
            yield drafts
            for draft in drafts:
                sync(draft)
            # Not removed yet: if the next step fails, it is put back.
            if obsolete is not None:
                os.replace(obsolete, folder / "obsolete")
            try:
                os.replace(drafts[0], main)
            except OSError:
                if obsolete is not None:
                    os.replace(folder / "obsolete", obsolete)
                raise
            for draft, place in zip(drafts[1:], places[1:]):
                os.replace(draft, os.path.realpath(place))
        except OSError as error:
            raise unwritten(main, error) from error
        finally:
            remove(folder)


def sync(file: Path) -> None:
    """Makes the operating system write the content of `file` to the disk."""
    # Windows needs a writable handle.
    with file.open("r+b") as written:
        os.fsync(written.fileno())


# What to do about the usual errors of writing, by their errno.
_FREE_SPACE, _PERMISSIONS = "free space or choose another place", "change the permissions or choose another place"
ADVICE = {errno.ENOSPC: _FREE_SPACE, errno.EDQUOT: _FREE_SPACE, errno.EACCES: _PERMISSIONS, errno.EPERM: _PERMISSIONS,
          errno.EFBIG: "choose a place on a file system that takes files of this size",
          errno.ENAMETOOLONG: "choose a shorter name", errno.ENOENT: "its folder was removed meanwhile, repeat this",
          errno.EMFILE: "raise the limit of open files (ulimit -n)",
          errno.EIO: "check the disk, or choose another place"}


def unwritten(path: Path, error: OSError) -> ArtifactError:
    """The error for a file that could not be written, with what the operating system says and what to do about it."""
    what, about = error.strerror or str(error), error.filename
    # An error in the block of `atomic_write` may be about a file that is read there. Copying names both files.
    if about is not None and error.filename2 is None and Path(os.fsdecode(about)).parent not in (
            path.parent, temporary_path(path, "dir")):
        return ArtifactError(f"{path} was not written, because {os.fsdecode(about)} cannot be used ({what}); check "
                             "that file and repeat this.")
    return ArtifactError(f"{path} could not be written ({what}); "
                         f"{ADVICE.get(error.errno or 0, 'choose another place')}.")


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json_text(value))


def json_text(value: Any) -> str:
    """`value` as indented JSON."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def hash_files(files: Iterable[str | Path]) -> dict[str, str]:
    """The sha256 of each of `files` that exists, by its path as given."""
    return {str(file): sha256(Path(file)) for file in files if not is_timm(file) and Path(file).is_file()}
