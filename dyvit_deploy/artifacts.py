"""The disk contract: what every artifact says about itself, and how files are written.

A checkpoint keeps its facts as JSON under `dyvit` in the safetensors header, an ONNX file
under `dyvit` in its metadata properties.
"""
from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import JsonConfig, ModelConfig, PruneConfig
from .errors import ArtifactError, ConfigError
from .zoo import is_timm

METADATA_KEY = "dyvit"
FORMAT = 1
REPORT_FORMAT = 1                           # of the stamp on the JSON of a report
# What the JSON of each report is called, by the class that writes it; every class that is saved stands here.
REPORTS = {
    "BenchReport": "bench", "BuildPlan": "plan", "Catalog": "models", "Comparison": "compare", "DeployReport": "export",
    "DoctorReport": "doctor", "EngineReport": "build", "EvalReport": "eval", "InspectReport": "inspect",
    "PageReport": "report", "ParityReport": "check", "PredictReport": "predict", "Preflight": "preflight",
    "QuickstartReport": "quickstart", "RepositoryReport": "repository", "SensitivityReport": "sensitivity",
    "ServeReport": "serve", "SweepReport": "sweep", "TrainReport": "train", "VisualizeReport": "visualize",
}


@dataclass(frozen=True)
class ArtifactFacts(JsonConfig):
    """What an artifact knows about itself.

    `prune` is None for a dense backbone. The fields from `precision` on are set by the exporter:
    `keep_counts` are patch tokens per stage, `parent` names the file exported from (`file`,
    `sha256`, `weights`), `versions` the libraries that did it. `lowered` is None for float32, else
    how the precision was lowered: `target`, `rest` (the precision of everything that is not
    `precision`), `kept` (products left in higher precision), `ranges` (method, images, sha256) and
    `gate` ("passed", "rejected" or "not run"). `forms` are the exact rewrites in a graph, see model.forms.
    """

    model: ModelConfig
    prune: PruneConfig | None = None
    class_names: tuple[str, ...] | None = None
    training: dict[str, Any] | None = None
    precision: str = "float32"
    input: str = "float32"
    keep_counts: tuple[int, ...] | None = None
    parent: dict[str, Any] | None = None
    versions: dict[str, str] | None = None
    lowered: dict[str, Any] | None = None
    forms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.model, ModelConfig):
            object.__setattr__(self, "model", ModelConfig.from_dict(self.model))
        if isinstance(self.prune, Mapping):
            object.__setattr__(self, "prune", PruneConfig.from_dict(self.prune))
        object.__setattr__(self, "forms", tuple(self.forms))

    def to_json(self) -> str:
        """One line of JSON, the text stored in the artifact."""
        return json.dumps({"format": FORMAT, **self.to_dict()}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, where: str) -> ArtifactFacts:
        """Raises ArtifactError, naming the file `where`, when the text is not ours."""
        try:
            values = json.loads(text)
            version = values.pop("format")
            if version != FORMAT:
                raise ArtifactError(f"{where} was written in format {version}, this dyvit reads format {FORMAT}; "
                                    "use the dyvit version that wrote it, or export again.")
            return cls.from_dict(values)
        except (ValueError, KeyError, AttributeError, TypeError, ConfigError) as error:
            raise ArtifactError(f"The dyvit metadata in {where} cannot be read ({error}); export it again.") from error

    @property
    def dense(self) -> bool:
        """True when no token is dropped."""
        return self.prune is None or self.prune.is_dense(self.model.patches)

    @property
    def elastic(self) -> tuple[float, float] | None:
        """The lowest and highest keep ratio of elastic training; None where it was trained for one, or not here."""
        span = ((self.training or {}).get("recipe") or {}).get("elastic")
        return (float(span[0]), float(span[1])) if span else None


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


def save_report(path: str | Path, report: Any, command: str, files: Iterable[str | Path] = ()) -> None:
    """Writes a report's JSON with a stamp in front, by which `dyvit report` knows it again.

    Args:
        report: a report of one of the classes in REPORTS.
        command: what was typed to get it.
        files: the artifacts that it is about. Their hashes are kept, so that a figure is never taken for that of a
            file which has changed since; what `hash_files` found before the work is taken as it is.

    Raises:
        TypeError: its class is not in REPORTS.
    """
    name = type(report).__name__
    if name not in REPORTS:
        raise TypeError(f"{name} has no name in artifacts.REPORTS, by which it could be read again.")
    hashes = dict(files) if isinstance(files, Mapping) else hash_files(files)
    stamp = {"report": REPORTS[name], "format": REPORT_FORMAT, "version": own_version(), "command": command,
             "files": hashes}
    write_json(path, {METADATA_KEY: stamp, **report.to_json()})


def library_versions(*distributions: str) -> dict[str, str]:
    """Versions of this package, Python and those of `distributions` that are installed."""
    versions = {"dyvit-deploy": own_version(), "python": platform.python_version()}
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def own_version() -> str:
    try:
        return importlib.metadata.version("dyvit-deploy")
    except importlib.metadata.PackageNotFoundError:                        # a source tree that was not installed
        return "unknown"
