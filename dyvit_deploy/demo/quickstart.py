"""The main job on the shipped demo checkpoint: export, check, evaluate, bench, report."""
from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text

from ..artifacts.files import atomic_write, hash_files, make_folder, size_mib
from ..artifacts.locks import sole_use
from ..artifacts.reports import save_report
from ..bench.config import BenchConfig
from ..bench.report import BenchReport
from ..calibration.config import CalibrationConfig, PrecisionConfig
from ..data.images import Track, no_track
from ..deploy.config import DeployConfig
from ..deploy.dense import benchmark
from ..deploy.pipeline import export_artifact
from ..deploy.plan import export_command
from ..deploy.report import Progress
from ..errors import ExportError
from ..evaluation.evaluate import EvalReport, evaluate_artifact
from ..export.config import ExportConfig
from ..optional import installed, require
from ..parity.compare import ParityReport, check_artifacts
from ..parity.config import CheckConfig
from ..report.page import write_report
from ..report.status import typed
from ..settings.tables import Table

DEMO = Path(__file__).parent
STUDENT, TEACHER = DEMO / "digits-s.safetensors", DEMO / "digits-s-dense.safetensors"
TABLE_BATCH = 32
RESULT = "quickstart.json"
CHECK_IMAGES = 256
# Of timing, per batch size.
SECONDS = 8


@dataclass(frozen=True)
class QuickstartRow:
    """One artifact. `agreement` is the share of images with PyTorch's top-1 class, `overlap` the mean overlap of kept
    tokens over stages; both are None for the checkpoint itself. `images_per_sec` and `speedup` (over the dense ONNX
    model) are at batch TABLE_BATCH."""

    artifact: str
    size_mib: float
    top1: float
    agreement: float | None
    overlap: float | None
    images_per_sec: float
    speedup: float | None


@dataclass(frozen=True)
class QuickstartReport:
    """True when every exported artifact computes what its checkpoint does, within its precision's tolerance.

    `commands` repeat the steps one by one; the last one writes `page`, which is None where Jinja2 is missing. `files`
    maps the artifacts to their hashes.
    """

    KIND: ClassVar[str] = "quickstart"

    folder: str
    rows: tuple[QuickstartRow, ...]
    evals: tuple[EvalReport, ...]
    checks: tuple[ParityReport, ...]
    bench: BenchReport
    commands: tuple[str, ...] = ()
    page: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return all(self.checks)

    def to_json(self) -> dict[str, Any]:
        return {"passed": bool(self), "folder": self.folder, "rows": [dataclasses.asdict(row) for row in self.rows],
                "evals": [e.to_json() for e in self.evals], "checks": [c.to_json() for c in self.checks],
                "bench": self.bench.to_json(), "commands": list(self.commands)}

    def table(self) -> Table:
        title = (f"{self.folder}: top-1 on {self.evals[0].images} held-out scenes, "
                 f"speed at batch {TABLE_BATCH} against the dense ONNX model")
        table = Table(title=Text(title), title_justify="left")
        table.add_column("artifact", overflow="fold")
        images = self.checks[0].batches[0].images
        for column in ("size MiB", "top-1", f"agrees with PyTorch on {images}", "kept-token overlap", "images/s",
                       "vs dense ONNX"):
            table.add_column(column, justify="right")
        for row in self.rows:
            shares = ("-" if share is None else f"{share:.2%}" for share in (row.agreement, row.overlap))
            table.add_row(Text(row.artifact), f"{row.size_mib:.1f}", f"{row.top1:.2%}", *shares,
                          f"{row.images_per_sec:.0f}", "-" if row.speedup is None else f"{row.speedup:.2f}x")
        return table


def run_quickstart(folder: str | Path = "dyvit-quickstart", say: Callable[[str], None] = lambda _: None,
               track: Track[Any] = no_track) -> QuickstartReport:
    """Runs every step that works on this machine and writes all results under `folder`.

    `say` receives, before each step, the command that does the same.

    Raises:
        ConfigError: another quickstart writes there.
        ExportError: an artifact was rejected.
    """
    # Checked first: the exports before its first use take a minute.
    require("sklearn", extra="demo")
    with sole_use(make_folder(folder) / RESULT):
        return _run(Path(folder), say, track)


def _run(folder: Path, say: Callable[[str], None], track: Track[Any]) -> QuickstartReport:
    commands: list[str] = []

    def announce(command: str) -> None:
        commands.append(command)
        say(command)

    student, dense = _copy(STUDENT, folder), _copy(TEACHER, folder)
    exports = _exports(student, dense, folder)
    for source, path, config in exports:
        announce(export_command(source, path, config))
        exported = export_artifact(source, path, config, progress=Progress(track=track))
        if not exported:
            raise ExportError(f"{path} was rejected: {exported.failures[0]}; see {exported.export.path}.")
    artifacts = [dense, student, *(path for _, path, _ in exports)]
    files, checks = hash_files(artifacts), {}
    for source, path, _ in exports:
        announce(typed("check", source, path, "--data", "digits", "--images", CHECK_IMAGES, "--batch",
                       f"1,{TABLE_BATCH}"))
        compared = CheckConfig(CHECK_IMAGES, (1, TABLE_BATCH))
        checks[path] = check_artifacts(source, path, "digits", compared, track=track)
    evals = []
    for path in artifacts:
        announce(typed("eval", path, "--data", "digits"))
        evals.append(evaluate_artifact(path, "digits", track=track))
    baseline = folder / "digits-s-dense.onnx"
    others = [path for path in artifacts if path != baseline]
    announce(typed("bench", *others, "--baseline", baseline, "--batch", f"1,{TABLE_BATCH}", "--seconds", SECONDS))
    timing = BenchConfig(batches=(1, TABLE_BATCH), seconds=SECONDS, baseline=baseline, memory=False)
    timed = benchmark(others, timing, track=track)
    rows = tuple(_row(path, result, checks.get(path), timed) for path, result in zip(artifacts, evals))
    if installed("jinja2"):
        announce(typed("report", folder))
    report = QuickstartReport(str(folder), rows, tuple(evals), tuple(checks.values()), timed, tuple(commands),
                              files=files)
    save_report(folder / RESULT, report, typed("quickstart", "-o", folder), files)
    if not installed("jinja2"):
        return report
    return dataclasses.replace(report, page=write_report(folder, track=track).path)


def _exports(student: Path, dense: Path, folder: Path) -> list[tuple[Path, Path, DeployConfig]]:
    """What is exported here: source, target and configuration."""
    tokens, int8, digits = ExportConfig(with_tokens=True), PrecisionConfig("int8"), CalibrationConfig("digits")
    raw = ExportConfig(with_tokens=True, input="uint8")
    exports = [
        (dense, folder / "digits-s-dense.onnx", DeployConfig()),
        (student, folder / "digits-s.onnx", DeployConfig(export=tokens)),
        (student, folder / "digits-s-uint8.onnx", DeployConfig(export=raw)),
        (student, folder / "digits-s-int8.onnx", DeployConfig("onnx", tokens, int8, digits)),
    ]
    if installed("openvino"):
        exports.append((student, folder / "digits-s-int8.xml", DeployConfig("openvino", tokens, int8, digits)))
    return exports


def _copy(source: Path, folder: Path) -> Path:
    target = folder / source.name
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)
    return target


def _row(path: Path, result: EvalReport, check: ParityReport | None, timed: BenchReport) -> QuickstartRow:
    timing = next(t for t in timed.timings if t.artifact == path.name and t.batch == TABLE_BATCH)
    worst = min(check.batches, key=lambda b: b.top1_agreement) if check else None
    overlap = worst.overlap_forgiven or worst.overlap if worst else ()
    return QuickstartRow(path.name, size_mib(path), result.top1, worst.top1_agreement if worst else None,
                         sum(overlap) / len(overlap) if overlap else None, timing.images_per_sec, timing.speedup)
