"""Reads the JSON reports in a folder into records; a report with an impossible value is refused."""
from __future__ import annotations

import dataclasses
import os.path
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..artifacts.facts import METADATA_KEY
from ..artifacts.reports import REPORT_FORMAT
from ..calibration.ranges import RANGES_KIND as RANGES
from ..data.reading import SPLITS
from ..errors import ArtifactError, ConfigError, reason, shorten
from ..evaluation.answers import Answers, read_answers
from ..settings.untrusted import read_json, typed
from ..sweep.store import DENSE_FILE, Store, read_store
from . import schema

# No time, rate or count is larger, and no time is smaller than its inverse.
HUGE = 1e12


@dataclass(frozen=True)
class ReportFile:
    """A report: its `file` relative to the folder, the `command` that wrote it, and the sha256 of the artifacts that it
    describes, by the path that was typed."""

    file: str
    command: str = ""
    version: str = ""
    files: Mapping[str, str] = field(default_factory=dict)

    def hashes(self, name: str) -> frozenset[str]:
        """The hashes of the artifacts of that name; empty if the report does not name one."""
        return frozenset(digest for path, digest in self.files.items() if Path(path).name == name)


# The reference in reports of earlier versions, which compared an export with the float32 graph that they had made.
FLOAT32 = "float32"


@dataclass(frozen=True)
class Check:
    """A comparison with `reference`; each figure is the worst over the batch sizes. Shares are 0..1; `images` is 0 if
    unknown. `own` marks the comparison of an export with its own checkpoint;
    `independent` a comparison of a checkpoint with what other code computes."""

    artifact: str
    source: ReportFile
    reference: str
    data: str
    images: int
    failures: tuple[str, ...]
    agreement: float | None
    relative_error: float | None
    overlap: float | None
    own: bool = False
    independent: bool = False

    @property
    def seen(self) -> tuple[str, int]:
        return same_data(self.data), self.images


@dataclass(frozen=True)
class Eval:
    """Accuracy on `images` labelled images of `data`, 0 if unknown; shares are 0..1. `answers` are the correct ones."""

    artifact: str
    source: ReportFile
    data: str
    images: int
    top1: float
    top5: float | None = None
    calibration_error: float | None = None
    failures: tuple[str, ...] = ()
    answers: Answers | None = None

    @property
    def seen(self) -> tuple[str, int]:
        """Two accuracies are comparable if this is equal."""
        return same_data(self.data), self.images


@dataclass(frozen=True)
class Speed:
    """One timing, in milliseconds. `intervals` are the 95 % ones of p50, p90 and p99; a sweep keeps none.
    `speedup` is relative to `baseline`; `stand_in` marks a dense backbone that was built for the comparison. Only
    timings of the same `run`, which names the report or the call in it, are comparable."""

    artifact: str
    source: ReportFile
    backend: str
    precision: str
    batch: int
    p50: float
    p90: float
    p99: float
    images_per_sec: float
    runs: int
    stable: bool
    speedup: float | None
    ceiling: float | None
    baseline: str
    intervals: Mapping[str, tuple[float | None, float | None]]
    stand_in: bool
    run: str


@dataclass(frozen=True)
class Environment:
    """A machine and the library versions on it, from one report."""

    source: ReportFile
    machine: Mapping[str, str]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Records:
    """The contents of reports; `commands` are in the order of the files. `checkpoints` are those of sweeps: their
    sha256, and their path relative to the folder, or their name."""

    checks: tuple[Check, ...] = ()
    evals: tuple[Eval, ...] = ()
    speeds: tuple[Speed, ...] = ()
    environments: tuple[Environment, ...] = ()
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    checkpoints: tuple[tuple[str, str], ...] = ()

    def __add__(self, other: Records) -> Records:
        return Records(*(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)))


def read_report(path: Path, name: str) -> Records:
    """The records of the report in `path`; empty for reports that do not describe an artifact. `name` is used in
    messages.

    Raises:
        ArtifactError: it is not a complete report of this version of dyvit.
    """
    try:
        values = read_json(path)
    except ArtifactError as error:
        raise ArtifactError(str(error).replace(str(path), name)) from error
    except ConfigError as error:
        raise ArtifactError(f"{name} is not a JSON file that can be used ({error}); write it again.") from error
    if isinstance(values, dict) and values.get("kind") == RANGES:
        return Records()
    stamp = values.get(METADATA_KEY) if isinstance(values, dict) else None
    if not isinstance(stamp, dict) or not isinstance(stamp.get("report"), str):
        raise ArtifactError(f"{name} is not a report of this dyvit, but of another tool or an older version; measure "
                            "again with --json.")
    if stamp.get("format") != REPORT_FORMAT:
        raise ArtifactError(f"{name} is a report in format {shorten(stamp.get('format'), 20)}, this dyvit reads format "
                            f"{REPORT_FORMAT}; measure again with --json.")
    try:
        stamp = typed(stamp, schema.Stamp, METADATA_KEY)
        source = ReportFile(name, stamp["command"], stamp["version"], stamp["files"])
        commands = Records(commands=(source.command,) if source.command else ())
        read = READERS.get(stamp["report"])
        return commands + read.records(typed(values, read.shape, stamp["report"]), source) if read else commands
    except ConfigError as error:
        raise ArtifactError(f"{name} is damaged, or was changed by hand ({reason(error)}); measure again with "
                            "--json.") from error


def _check(values: Mapping[str, Any], source: ReportFile, artifact: str | None = None) -> Records:
    batches = values["batches"]
    if not batches:
        raise ConfigError("it compares nothing")
    failures = (*map(_text, values.get("pixel_failures", ())),
                *(f"batch {_count(b['batch'])}: {_text(line)}" for b in batches for line in b["failures"]))
    overlaps = [_share(share) for b in batches for share in (b["overlap_forgiven"] or b["overlap"])]
    errors = [b["relative_error"] for b in batches]
    return Records(checks=(Check(
        artifact or _text(values["candidate"]), source, _text(values["reference"]), _text(values["data"]),
        max(_count(b["images"]) for b in batches), failures, min(_share(b["top1_agreement"]) for b in batches),
        None if None in errors else max(map(_number, errors)), min(overlaps, default=None),
        artifact is not None and _text(values["reference"]) != FLOAT32,
        values.get("independent") is True),))


def _eval(values: Mapping[str, Any], source: ReportFile) -> Records:
    images, top1 = _count(values["images"]), _share(values["top1"])
    return Records(evals=(Eval(_text(values["artifact"]), source, _text(values["data"]), images, top1,
                               _share(values["top5"]), _number(values["calibration_error"]),
                               tuple(map(_text, values["failures"])),
                               read_answers(values.get("answers"), images, top1)),))


def _bench(values: Mapping[str, Any], source: ReportFile) -> Records:
    baseline = values["config"]["baseline"]
    against = Path(_text(baseline)).name if baseline else "the dense backbone"
    machine = _environment(values, source)
    return Records(speeds=tuple(_speed(timing, source, against, source.file) for timing in values["timings"]),
                   environments=(machine,), notes=tuple(map(_text, values["notes"])))


def _speed(values: Mapping[str, Any], source: ReportFile, baseline: str, run: str) -> Speed:
    intervals = {_text(name): (_positive_or_none(low), _positive_or_none(high))
                 for name, (low, high) in (values["ci95_ms"] or {}).items()}
    return Speed(_text(values["artifact"]), source, _text(values["backend"]), _text(values["precision"]),
                 _count(values["batch"]), *_latencies(values), _positive(values["images_per_sec"]),
                 _count(values["runs"]), values["stable"] is True, _positive_or_none(values["speedup"]),
                 _positive_or_none(values["ceiling"]), baseline, intervals, values["stand_in"] is True, run)


def _latencies(values: Mapping[str, Any]) -> tuple[float, float, float]:
    return (_positive(values["latency_ms_p50"]), _positive(values["latency_ms_p90"]),
            _positive(values["latency_ms_p99"]))


def _quickstart(values: Mapping[str, Any], source: ReportFile) -> Records:
    found = Records(commands=tuple(map(_text, values["commands"])))
    for check in values["checks"]:
        found += _check(check, source)
    for result in values["evals"]:
        found += _eval(result, source)
    return found + _bench(values["bench"], source)


def _export(values: Mapping[str, Any], source: ReportFile) -> Records:
    """The comparisons of an artifact with its checkpoint."""
    if len(source.files) != 1:
        raise ConfigError(f"it is about {len(source.files)} files, and an export makes one")
    [artifact] = source.files
    found = Records()
    for gate in (values[name] for name in ("gate", "on_device") if values[name] is not None):
        found += _check(gate, source, Path(artifact).name)
    return found


def _sweep(values: Mapping[str, Any], source: ReportFile) -> Records:
    """The rows of `dyvit sweep --json`; see `read_sweep` for sweep.json, which has all rows."""
    runs = {_count(run["run"]): _environment(run, source) for run in values["runs"]}
    speeds = tuple(_swept({**row, "artifact": Path(_text(row["artifact"])).name}, source, runs)
                   for row in values["rows"])
    commands = dict.fromkeys(_text(row["command"]) for row in values["rows"])
    return Records(speeds=speeds, environments=tuple(runs.values()), commands=tuple(commands))


def _environment(values: Mapping[str, Any], source: ReportFile) -> Environment:
    return Environment(source, _texts(values["machine"]), _texts(values["versions"]))


def _swept(row: Mapping[str, Any], source: ReportFile, machines: Mapping[int, Environment]) -> Speed:
    """A timing of a sweep, which has the number of the call that measured it."""
    number = _count(row["run"])
    if number not in machines:
        raise ConfigError("a timing belongs to no run")
    label = source.file if len(machines) == 1 else f"{source.file}, run {number}"
    row = {**row, "ci95_ms": None, "ceiling": None, "stand_in": False}
    return _speed(row, source, DENSE_FILE, label)


class Reader(NamedTuple):
    """How a kind of report is read: the types of what is read of it, and the function that makes records of that."""

    shape: Any
    records: Callable[[Mapping[str, Any], ReportFile], Records]


READERS = {
    "check": Reader(schema.Check, _check), "eval": Reader(schema.Eval, _eval), "bench": Reader(schema.Bench, _bench),
    "quickstart": Reader(schema.Quickstart, _quickstart), "export": Reader(schema.Export, _export),
    "sweep": Reader(schema.Sweep, _sweep),
}


def read_sweep(folder: Path, name: str) -> Records:
    """The records of the sweep.json in `folder`. `name` is used in messages.

    Raises:
        ArtifactError: it is damaged, or from another version.
    """
    try:
        store = read_store(folder)
        return _from_store(store, folder, name) if store else Records()
    except ConfigError as error:
        raise ArtifactError(f"{name} is damaged, or was changed by hand ({reason(error)}); delete it to sweep "
                            "again.") from error


def _from_store(store: Store, folder: Path, name: str) -> Records:
    """The records of a sweep; a file's hash is that of the file which was measured."""
    dense = {DENSE_FILE: store.dense_sha256} if store.dense_sha256 else {}
    source = ReportFile(name, files={a.file: a.sha256 for a in store.artifacts} | dense)
    of = {a.file: a for a in store.artifacts}
    checks, evals = [], []
    for a in store.artifacts:
        judged = a.judged or {}
        asked = _text(judged.get("data", store.config.data) or "noise")
        seen = a.seen or {"data": "digits:test" if asked == "digits" else asked}
        data, images = seen.get("data", asked), _count(judged.get("images") or 0)
        if a.agreement is not None or a.rejected:
            compared = _count(seen.get("compared", images))
            checks.append(Check(a.file, source, f"{Path(store.checkpoint['file']).name} in float32", data, compared,
                                a.rejected, _share_or_none(a.agreement), None, _share_or_none(a.overlap), True))
        if a.top1 is not None:
            images, top1 = _count(seen.get("evaluated", images)), _share(a.top1)
            evals.append(Eval(a.file, source, data, images, top1, answers=read_answers(a.answers, images, top1)))
    machines = {number: _environment(run, source) for number, run in enumerate(store.runs)}
    speeds = [_swept({**dataclasses.asdict(t), "artifact": t.file, "backend": of[t.file].backend,
                      "precision": of[t.file].precision}, source, machines) for t in store.latencies if t.file in of]
    checkpoint = _text(store.checkpoint["sha256"]), _from_here(store.checkpoint["file"], folder, name)
    return Records(tuple(checks), tuple(evals), tuple(speeds), tuple(machines.values()), checkpoints=(checkpoint,))


def _from_here(file: str, folder: Path, name: str) -> str:
    """The path from the report's folder to `file`, which is relative to a folder above the sweep; its name alone if it
    no longer exists."""
    if Path(file).is_absolute():
        return file
    # Unlike Path.is_file, this never raises.
    above = next((above for above in folder.resolve().parents if os.path.isfile(above / file)), None)
    root = folder.resolve().joinpath(*[".."] * name.count("/"))
    return Path(os.path.relpath(above / file, root)).as_posix() if above else Path(file).name


def same_data(name: str) -> str:
    """The name of a set of images, normalized: photos, photos/ and ./photos are the same folder; a split is kept."""
    source, colon, split = name.rpartition(":")
    return f"{os.path.normpath(source)}:{split}" if colon and split in SPLITS else os.path.normpath(name)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{shorten(value)} is not text")
    return value


def _number(value: Any) -> float:
    # The comparison is False for NaN.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= HUGE:
        raise ConfigError(f"{shorten(value)} is not a number, or none that was measured")
    return float(value)


def _positive(value: Any) -> float:
    if _number(value) < 1 / HUGE:
        raise ConfigError(f"{value!r} is not positive")
    return float(value)


def _share(value: Any) -> float:
    if not 0 <= _number(value) <= 1:
        raise ConfigError(f"{value!r} is not a share")
    return float(value)


def _share_or_none(value: Any) -> float | None:
    return None if value is None else _share(value)


def _positive_or_none(value: Any) -> float | None:
    return None if value is None else _positive(value)


def _count(value: Any) -> int:
    if not isinstance(value, int) or _number(value) < 0:
        raise ConfigError(f"{shorten(value)} is not a count")
    return value


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """A machine, or versions, as text."""
    return {_text(name): _as_text(value) for name, value in values.items() if value is not None}


def _as_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_as_text(inner)}" for name, inner in value.items())
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(_as_text, value))
    return str(value)
