"""OUT/sweep.json: all results so far, so that a second call measures only what is missing."""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifacts.files import is_timm, require_source, sha256, write_json
from ..calibration.config import CalibrationConfig
from ..config import LoadConfig
from ..errors import ArtifactError, ConfigError
from ..settings.fields import JsonConfig
from .grid import GridPoint, SweepConfig, changed, filled

FORMAT = 1
NAME = "sweep.json"
# The baseline of speed-ups.
DENSE_FILE = "dense-float32.onnx"


@dataclass(frozen=True)
class Artifact(JsonConfig):
    """One exported file in the folder, and its quality; shares are fractions 0..1.

    `rejected` says why it differs too much from float32; such a file is neither evaluated nor timed. `agreement` is
    the share of images with the class of the float32 model at the same keep ratio, `overlap` the share of that model's
    kept tokens at the worst stage, `dense_agreement` the share of images with the class of the dense float32 model,
    if there are no labels for `top1`. `judged` has the requested `data` and `images`, `seen` the data that were used,
    and on how many images the file was `evaluated` and `compared`.
    """

    keep_ratio: float
    precision: str
    backend: str
    file: str
    sha256: str
    size_mib: float
    keep_counts: tuple[int, ...] | None = None
    rejected: tuple[str, ...] = ()
    judged: dict[str, Any] | None = None
    top1: float | None = None
    agreement: float | None = None
    overlap: float | None = None
    dense_agreement: float | None = None
    seen: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_numbers(self, "keep_ratio", "size_mib")
        _check_numbers(self, "top1", "agreement", "overlap", "dense_agreement", optional=True)

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

    def __post_init__(self) -> None:
        _check_numbers(self, "batch", "run", "latency_ms_p50", "latency_ms_p90", "latency_ms_p99", "images_per_sec",
                       "runs")
        _check_numbers(self, "speedup", optional=True)


def _check_numbers(values: Any, *names: str, optional: bool = False) -> None:
    """Raises TypeError if an attribute is not a number, as in a damaged file."""
    for name in names:
        value = getattr(values, name)
        if not isinstance(value, (int, float)) and not (optional and value is None):
            raise TypeError(f"{name} is {value!r}")


@dataclass(frozen=True)
class Store:
    """The content of the file. `runs` has the time and the machine of each call that timed something."""

    checkpoint: dict[str, str]
    config: SweepConfig
    load: LoadConfig = LoadConfig()
    dense_sha256: str | None = None
    artifacts: tuple[Artifact, ...] = ()
    latencies: tuple[Latency, ...] = ()
    runs: tuple[dict[str, Any], ...] = ()

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
        values = json.loads(path.read_text())
        if values["format"] != FORMAT:
            raise ValueError("another version of dyvit wrote it")
        store = Store(
            {name: str(values["checkpoint"][name]) for name in ("file", "sha256")},
            SweepConfig.from_dict(values["config"]), LoadConfig.from_dict(values["load"]), values["dense_sha256"],
            tuple(map(Artifact.from_dict, values["artifacts"])), tuple(map(Latency.from_dict, values["latencies"])),
            tuple(map(dict, values["runs"])))
        for run in store.runs:
            machine_name(run["machine"])
        if any(t.run >= len(store.runs) for t in store.latencies):
            raise ValueError("a timing belongs to no run")
        return store
    except OSError as error:
        raise ArtifactError(f"{path} cannot be opened ({error.strerror}); check its permissions.") from error
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise ArtifactError(f"{path} is damaged ({str(error).rstrip('.')}); delete it to sweep again, or choose "
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
