"""OUT/sweep.json: all results so far, so that a second call measures only what is missing."""
from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from ..artifacts.facts import with_format
from ..artifacts.files import is_timm, require_source, sha256, write_json
from ..calibration.config import CalibrationConfig
from ..calibration.targets import FORMATS
from ..config import PRECISIONS, LoadConfig
from ..errors import ArtifactError, ConfigError, reason, shorten
from ..evaluation.answers import Packed
from ..settings.fields import JsonConfig, check_choice
from ..settings.untrusted import read_json
from .grid import GridPoint, SweepConfig, changed, filled

FORMAT = 1
NAME = "sweep.json"
# The baseline of speed-ups.
DENSE_FILE = "dense-float32.onnx"
# Characters of a file's name.
LONGEST_FILE = 200


class Origin(TypedDict):
    """The checkpoint of a sweep."""

    file: str
    sha256: str


class Machine(TypedDict):
    """What distinguishes machines of `hardware.machine()`."""

    processor: str
    logical_cores: int


class Judged(TypedDict, total=False):
    """The data that were requested to judge an artifact; `class_map` is the sha256 of that file."""

    data: str | None
    images: int | None
    class_map: str


class Seen(TypedDict, total=False):
    """The data that were used to judge an artifact, and on how many images."""

    data: str
    compared: int
    evaluated: int


class Run(TypedDict):
    """A call that timed something."""

    machine: Annotated[dict[str, Any], Machine]
    versions: dict[str, str]


@dataclass(frozen=True)
class Artifact(JsonConfig):
    """One exported file in the folder, and its quality; shares are fractions 0..1.

    `rejected` says why it differs too much from float32; such a file is neither evaluated nor timed. `agreement` is
    the share of images with the class of the float32 model at the same keep ratio, `overlap` the share of that model's
    kept tokens at the worst stage, `dense_agreement` the share of images with the class of the dense float32 model,
    if there are no labels for `top1`. `judged` has the requested `data` and `images`, `seen` the data that were used,
    and on how many images the file was `evaluated` and `compared`. `answers` are those of `EvalReport`, as JSON.
    """

    keep_ratio: float
    precision: str
    backend: str
    file: str
    sha256: str
    size_mib: float
    keep_counts: tuple[int, ...] | None = None
    rejected: tuple[str, ...] = ()
    judged: Annotated[dict[str, Any], Judged] | None = None
    top1: float | None = None
    agreement: float | None = None
    overlap: float | None = None
    dense_agreement: float | None = None
    seen: Annotated[dict[str, Any], Seen] | None = None
    answers: Annotated[dict[str, Any], Packed] | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: a value that no artifact of a sweep has.
        """
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("backend", self.backend, FORMATS)
        if self.file != Path(self.file).name or not self.file.isprintable() or len(self.file) > LONGEST_FILE:
            raise ConfigError(f"the artifact {shorten(self.file)} is not a file in the folder")
        for name in ("top1", "agreement", "overlap", "dense_agreement"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ConfigError(f"{name} of {self.file} is {getattr(self, name)}, and not a share")

    @property
    def candidate(self) -> GridPoint:
        return GridPoint(self.keep_ratio, self.precision, self.backend)


@dataclass(frozen=True)
class Latency(JsonConfig):
    """One timing of a file at a batch size, in milliseconds for the whole batch.

    `speedup` is over the dense float32 model in ONNX Runtime, timed in the same call. `how` are the settings that must
    be equal for two timings to be comparable, `run` is the index in `Store.runs` of the call that measured it.
    """

    file: str
    batch: int
    run: int
    how: dict[str, Any]
    latency_ms_p50: float
    latency_ms_p90: float
    latency_ms_p99: float
    images_per_sec: float
    runs: int
    stable: bool
    speedup: float | None = None


@dataclass(frozen=True)
class Store(JsonConfig):
    """The content of the file. `runs` has the time and the machine of each call that timed something."""

    checkpoint: Annotated[dict[str, str], Origin]
    config: SweepConfig
    load: LoadConfig = LoadConfig()
    dense_sha256: str | None = None
    artifacts: tuple[Artifact, ...] = ()
    latencies: tuple[Latency, ...] = ()
    runs: tuple[Annotated[dict[str, Any], Run], ...] = ()

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: a timing belongs to no run.
        """
        if any(not 0 <= t.run < len(self.runs) for t in self.latencies):
            raise ConfigError("a timing belongs to no run")

    def save(self, folder: Path) -> None:
        """Writes the file.

        Raises:
            ArtifactError: another sweep has written it since this store was opened.
        """
        # `run_sweep` has a lock, which some network file systems ignore. A store only grows.
        written = read_store(folder)
        if written and (len(written.runs) > len(self.runs) or any(not self.find(a.candidate)
                                                                  for a in written.artifacts)):
            raise ArtifactError(f"{folder / NAME} was written by another sweep in the meantime; run this command "
                                "again, which goes on from there.")
        write_json(folder / NAME, {"format": FORMAT, **dataclasses.asdict(self)})

    def find(self, candidate: GridPoint) -> Artifact | None:
        return next((a for a in self.artifacts if a.candidate == candidate), None)

    def latency(self, artifact: Artifact, batch: int, how: Mapping[str, Any]) -> Latency | None:
        return next((t for t in self.latencies if (t.file, t.batch, t.how) == (artifact.file, batch, how)), None)

    def with_artifact(self, new: Artifact) -> Store:
        """The store with `new` in place of the artifact for the same combination; if the file differs, its timings are
        dropped."""
        old = self.find(new.candidate)
        same = old is not None and (old.file, old.sha256) == (new.file, new.sha256)
        return dataclasses.replace(
            self, artifacts=(*(a for a in self.artifacts if a.candidate != new.candidate), new),
            latencies=tuple(t for t in self.latencies if same or old is None or t.file != old.file))

    def with_latencies(self, new: list[Latency]) -> Store:
        keys = {(t.file, t.batch) for t in new}
        return dataclasses.replace(
            self, latencies=(*(t for t in self.latencies if (t.file, t.batch) not in keys), *new))


def machine_name(machine: Mapping[str, Any]) -> str:
    """A name that distinguishes machines, made of `hardware.machine()`."""
    return f"{machine['processor']}, {machine['logical_cores']} cores"


def read_store(folder: Path) -> Store | None:
    """The store in `folder`; None if there is no sweep.

    Raises:
        ArtifactError: the file is damaged or cannot be read.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        values = with_format(read_json(path), FORMAT, str(path), "delete it to sweep again")
        if missing := [field.name for field in dataclasses.fields(Store) if field.name not in values]:
            raise ConfigError(f"it lacks {', '.join(missing)}")
        return Store.from_dict(values)
    except ConfigError as error:
        raise ArtifactError(f"{path} is damaged ({reason(error)}); delete it to sweep again, or choose "
                            "another -o.") from error


def recall(folder: str | Path, given: Mapping[str, Any]) -> SweepConfig:
    """The settings of the sweep in `folder`, or the defaults if there is none, updated with those in `given`.

    Of a CalibrationConfig in `given`, only values other than the defaults are used.

    Raises:
        ConfigError: a value is invalid.
    """
    store = read_store(Path(folder))
    if store is None:
        return SweepConfig.from_dict(given)
    calibration = filled(given.get("calibration", CalibrationConfig()), store.config.calibration)
    return SweepConfig.from_dict(store.config.to_dict() | dict(given) | {"calibration": calibration})


def open_store(checkpoint: str | Path | None, folder: Path, config: SweepConfig | None, load: LoadConfig) -> Store:
    """The store in `folder` with these settings, or a new one; nothing is written yet.

    If `checkpoint` or `config` is None, or a setting of `load` has its default, the stored value is used.

    Raises:
        ArtifactError: the folder belongs to another checkpoint, or its store is damaged.
        ConfigError: the artifacts there were made with other options, or there is no checkpoint to sweep.
    """
    store = read_store(folder)
    if checkpoint is None and store is None:
        raise ConfigError(f"{folder} holds no sweep yet; name the checkpoint: dyvit sweep CHECKPOINT -o {folder}")
    checkpoint = checkpoint or (store.checkpoint["file"] if store else "")
    source = require_source(checkpoint)
    load = filled(load, store.load) if store else load
    digest = _digest(source, load)
    if store is None:
        return Store({"file": str(source), "sha256": digest}, config or SweepConfig(), load)
    if store.checkpoint["sha256"] != digest:
        raise ArtifactError(f"{folder} holds a sweep of another checkpoint, {store.checkpoint['file']} with sha256 "
                            f"{store.checkpoint['sha256'][:12]}; choose another -o.")
    config = config or store.config
    differing = changed(store.load.to_dict(), load.to_dict())
    # Float32 artifacts do not depend on the calibration.
    if any(artifact.precision != "float32" for artifact in store.artifacts):
        before, now = store.config.calibration.to_dict(), config.calibration.to_dict()
        differing += [f"calibration {name}" for name in changed(before, now)]
    if differing:
        raise ConfigError(f"{folder} holds a sweep with another {', '.join(differing)}; leave that option out to "
                          "resume the sweep, or choose another -o.")
    return dataclasses.replace(store, config=config, load=load)


def _digest(source: Path, load: LoadConfig) -> str:
    """The checkpoint's sha256; for timm:NAME that of the weights that timm downloads."""
    if not is_timm(source):
        return sha256(source)
    from ..model.checkpoint import read_checkpoint
    return str(read_checkpoint(source, load.weights).origin()["sha256"])
