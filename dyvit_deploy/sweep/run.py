"""A sweep: exports missing artifacts, measures their quality, times them in turns, and stores each result at once."""
from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..artifacts.facts import library_versions
from ..artifacts.files import make_folder, require_file, sha256, size_mib
from ..artifacts.locks import sole_use
from ..bench.config import BenchConfig
from ..bench.process import make_feed
from ..bench.report import Timing
from ..bench.run import REPORTED_LIBRARIES
from ..config import KeepRequest, LoadConfig
from ..data.labels import check_numbers, class_numbers, numbering, require_labels
from ..data.open import check_source, open_images
from ..deploy.config import DeployConfig
from ..deploy.dense import benchmark
from ..deploy.pipeline import export_artifact
from ..deploy.plan import export_command
from ..deploy.report import Progress
from ..errors import ArtifactError, CheckpointError, DyvitError, ExportError, MissingDependency
from ..evaluation.config import EvalConfig
from ..evaluation.evaluate import evaluate_artifact
from ..export.config import ExportConfig
from ..graph.files import data_files
from ..machine.hardware import machine
from ..parity.compare import ParityReport, check_artifacts
from ..parity.config import CheckConfig
from ..runners.open import open_runner
from ..settings.notes import assume
from .chart import FILES, draw_charts
from .grid import GridPoint, SweepConfig, at_ratio, check_runnable
from .report import Skipped, SweepReport, with_front
from .store import DENSE_FILE, NAME, Artifact, Latency, Store, machine_name, open_store, read_store
from .target import SweepRow

# The most images of a comparison, which holds them in memory.
COMPARED_IMAGES = 256
# With fewer runs, the 99th percentile is nearly the slowest run.
ENOUGH_RUNS = 100


def run_sweep(checkpoint: str | Path | None, out: str | Path, config: SweepConfig | None = None,
              load: LoadConfig = LoadConfig(), progress: Progress = Progress()) -> SweepReport:
    """Exports and measures every combination of `config` in the folder `out`; results that are already there are kept.

    If `checkpoint` or `config` is None, or a setting of `load` has its default, the value of the previous sweep in the
    folder is used. `load.keep` has all of the schedule but the keep ratio. Combinations that do not exist or do not run
    here are skipped, with the reason. Results are written to OUT/sweep.json after each step, so that an interruption
    loses at most one step.

    Raises:
        ArtifactError: the checkpoint or the folder cannot be used, or the folder holds another checkpoint's sweep.
        ConfigError: the artifacts in the folder were made with other options, or another sweep runs there.
        DataError: the images cannot be used, or have classes that the model does not know.
        ExportError: no combination is left, or none of them runs.
    """
    # A finished sweep can also be read where nothing may be written.
    only_read = os.path.isdir(out) and not os.access(out, os.W_OK)
    with contextlib.nullcontext() if only_read else sole_use(Path(out) / NAME):
        return _Sweep(checkpoint, Path(out), config, load, progress).run()


class _Sweep:
    """One call of `run_sweep`. Once `run` has started, `store` always equals the file on disk.

    `labelled` says whether the images have labels, `number` is the number of this run, once it times something.
    `judged` and `how` are the settings that measurements of quality and of speed must share to be reused.
    """

    def __init__(self, checkpoint: str | Path | None, out: Path, config: SweepConfig | None, load: LoadConfig,
                 progress: Progress) -> None:
        self.store = open_store(checkpoint, out, config, load)
        self.checkpoint = str(checkpoint or self.store.checkpoint["file"])
        self.out, self.config, self.load = out, self.store.config, self.store.load
        self.say, self.quiet = progress.say, progress._replace(say=Progress().say)
        self.skipped: list[Skipped] = []
        self.labelled = False
        self.number: int | None = None
        self.judged = {"data": self.config.data, "images": self.config.images}
        if self.config.class_map:
            self.judged["class_map"] = sha256(require_file(self.config.class_map))
        self.how = {"seconds": self.config.seconds, "threads": self.config.threads, "device": self.config.device}

    def run(self) -> SweepReport:
        stored = read_store(self.out) == self.store
        runnable = [c for c in self.config.candidates() if self._runnable(c)]
        missing = [c for c in runnable if not self._done(c)]
        if missing:
            self._check_data()
            make_folder(self.out)
        for number, candidate in enumerate(missing, 1):
            self.say(f"{number} of {len(missing)}: {candidate.file}")
            try:
                self._complete(candidate)
            except DyvitError as error:
                # If the folder cannot be written to, the next candidate would fail, too.
                if isinstance(error, ArtifactError) and not isinstance(error, CheckpointError):
                    raise
                self.skipped.append(Skipped(*candidate, str(error)))
        artifacts = [a for c in runnable if (a := self.store.find(c)) is not None and self._done(c)]
        if not artifacts:
            raise ExportError(f"Nothing is left to sweep: {self.skipped[0].reason}")
        accepted = [a for a in artifacts if not a.rejected]
        timed = [batch for batch in self.config.batches if self._time(accepted, batch)]
        new = bool(missing or timed or not stored)
        if new:
            # Possibly only the settings are new.
            self._save(self.store)
        report = self._report(accepted, [a for a in artifacts if a.rejected], new)
        if accepted and not report.rows:
            raise ExportError(f"Nothing could be timed: {self.skipped[-1].reason}")
        return report

    def _runnable(self, candidate: GridPoint) -> bool:
        try:
            check_runnable(candidate, self.config)
        except DyvitError as error:
            self.skipped.append(Skipped(*candidate, str(error)))
            return False
        return True

    def _save(self, store: Store) -> None:
        self.store = store
        store.save(self.out)

    def _on_disk(self, candidate: GridPoint) -> Artifact | None:
        """The artifact of a candidate, if its file still has the recorded hash."""
        artifact = self.store.find(candidate)
        path = self.out / artifact.file if artifact else None
        return artifact if artifact and path and _is_unchanged(path, artifact.sha256) else None

    def _done(self, candidate: GridPoint) -> bool:
        artifact = self._on_disk(candidate)
        return artifact is not None and (_failed_the_gate(artifact) or artifact.judged == self.judged)

    def _check_data(self) -> None:
        """Finds out whether the images have labels; raises the errors that every artifact would have in common."""
        from ..model.checkpoint import load_facts

        facts = load_facts(self.checkpoint, at_ratio(self.load, 1.0))
        if self.config.data is None:
            return
        check_source(self.config.data)
        images = open_images(self.config.data, facts.model, "test", self.config.images)
        self.labelled = images.class_names is not None
        if self.labelled:
            class_map = self.config.class_map
            numbers = class_numbers(images, facts.class_names, class_map=class_map)
            if class_map or not facts.class_names:
                check_numbers(images, numbers, facts.model.classes, class_map)
            if not class_map and not facts.class_names:
                assume(numbering(self.checkpoint, images.name, require_labels(images)))

    def _complete(self, candidate: GridPoint) -> None:
        """Exports the candidate unless its file exists, measures its quality, and stores the results."""
        artifact = self._on_disk(candidate)
        if artifact is None:
            artifact = self._export(candidate)
            self._save(self.store.with_artifact(artifact))
        if not _failed_the_gate(artifact):
            self._save(self.store.with_artifact(self._judge(artifact)))

    def _export(self, candidate: GridPoint) -> Artifact:
        path = self.out / candidate.file
        report = export_artifact(self.checkpoint, path, candidate.deploy(self.config),
                                 at_ratio(self.load, candidate.keep_ratio), self.quiet)
        made = Path(report.path)
        shares = _shares(report.gate) if report.gate is not None and not report else {}
        return Artifact(*candidate, made.name, sha256(made), size_mib(made), report.export.facts.keep_counts,
                        report.failures, **shares)

    def _judge(self, artifact: Artifact) -> Artifact:
        """Compares the artifact with float32 at its keep ratio, and with labels, or without labels with the dense
        model."""
        path, data = self.out / artifact.file, self.config.data
        limit = min(self.config.images or COMPARED_IMAGES, COMPARED_IMAGES)
        config = CheckConfig(limit, device=self.config.device)
        # The checkpoint is opened with the schedule and image size of the artifact; only other settings are passed.
        plain = dataclasses.replace(self.load, keep=KeepRequest(), image_size=None)
        compared = check_artifacts(self.checkpoint, path, data, config, plain, self.quiet.track)
        top1 = dense_agreement = answers = None
        seen = {"data": compared.data, "compared": max(b.images for b in compared.batches)}
        failures = compared.failures
        if self.labelled and not failures:
            wanted = EvalConfig("test", self.config.images, device=self.config.device, class_map=self.config.class_map)
            evaluated = evaluate_artifact(path, data or "", wanted, track=self.quiet.track)
            top1, failures = evaluated.top1, evaluated.failures
            seen |= {"data": evaluated.data, "evaluated": evaluated.images}
            answers = dataclasses.asdict(evaluated.answers) if evaluated.answers else None
        elif data and not failures:
            dense = check_artifacts(self._dense(), path, data, config, track=self.quiet.track)
            dense_agreement = _shares(dense)["agreement"]
        return dataclasses.replace(artifact, judged=self.judged, rejected=failures, top1=top1,
                                   dense_agreement=dense_agreement, seen=seen, answers=answers, **_shares(compared))

    def _dense(self) -> Path:
        """The dense float32 model as a user would run it without this package: exported without rewrites."""
        path = self.out / DENSE_FILE
        if not (self.store.dense_sha256 and _is_unchanged(path, self.store.dense_sha256)):
            config = DeployConfig(export=ExportConfig(without=("all",)))
            export_artifact(self.checkpoint, path, config, at_ratio(self.load, 1.0), self.quiet)
            self._save(dataclasses.replace(self.store, dense_sha256=sha256(path)))
        return path

    def _time(self, accepted: Sequence[Artifact], batch: int) -> bool:
        """Times the artifacts without a result at that batch size, in one call; False if nothing was timed."""
        todo = [a for a in accepted if self.store.latency(a, batch, self.how) is None]
        if not todo:
            return False
        self.say(f"timing {len(todo)} artifacts at batch {batch}, at most {self.config.seconds * len(todo):.0f} s")
        timings = self._timings(todo, batch)
        if not timings:
            return False
        runs = self.store.runs
        if self.number is None:
            self.number = len(runs)
            now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            runs = (*runs, {"at": now, "machine": machine(), "versions": library_versions(*REPORTED_LIBRARIES)})
        self._save(dataclasses.replace(self.store, runs=runs).with_latencies(
            [_latency(file, self.number, self.how, timing) for file, timing in timings.items()]))
        return True

    def _timings(self, artifacts: Sequence[Artifact], batch: int) -> dict[str, Timing]:
        """The timings by file name. An artifact that does not run is skipped, and the others are still timed."""
        config = BenchConfig((batch,), self.config.seconds * len(artifacts), baseline=self._dense(),
                             device=self.config.device, threads=self.config.threads, memory=False)
        try:
            report = benchmark([self.out / a.file for a in artifacts], config, track=self.quiet.track)
        except DyvitError:
            working = [a for a in artifacts if self._runs(a, batch)]
            # All of them run alone, so the error has another cause.
            if len(working) == len(artifacts):
                raise
            return self._timings(working, batch) if working else {}
        timings = {t.artifact: t for t in report.timings}
        return {a.file: timings[a.file] for a in artifacts}

    def _runs(self, artifact: Artifact, batch: int) -> bool:
        """True if the artifact runs alone; else the reason is added to `skipped`."""
        path = self.out / artifact.file
        try:
            with open_runner(path, device=self.config.device, threads=self.config.threads) as runner:
                runner.infer(make_feed(runner, batch))
        except DyvitError as error:
            self.skipped.append(Skipped(*artifact.candidate, f"Batch {batch}: {error}"))
            return False
        return True

    def _report(self, accepted: Sequence[Artifact], rejected: Sequence[Artifact], new: bool) -> SweepReport:
        rows = [self._row(a, t) for batch in self.config.batches for a in accepted
                if (t := self.store.latency(a, batch, self.how)) is not None]
        runs = tuple({"run": run, **self.store.runs[run]} for run in sorted({row.run for row in rows}))
        report = with_front(SweepReport(self.checkpoint, str(self.out), self.config, tuple(rows), tuple(rejected),
                                        tuple(self.skipped), tuple(self._notes(rows) + _run_notes(runs)), runs))
        try:
            charts = draw_charts(report, self.out, new or self._charts_are_older())
        except MissingDependency as error:
            return dataclasses.replace(report, notes=(*report.notes, f"No chart was drawn: {error}"))
        return dataclasses.replace(report, charts=charts)

    def _charts_are_older(self) -> bool:
        """True if the results were written after the charts: a sweep was interrupted in between."""
        charts = [self.out / name for name in FILES]
        written = (self.out / NAME).stat().st_mtime_ns
        return any(chart.stat().st_mtime_ns < written for chart in charts if chart.is_file())

    def _row(self, artifact: Artifact, timing: Latency) -> SweepRow:
        path = self.out / artifact.file
        command = export_command(Path(self.checkpoint), path, artifact.candidate.deploy(self.config),
                                 at_ratio(self.load, artifact.keep_ratio))
        return SweepRow(str(path), *artifact.candidate, timing.batch, artifact.size_mib, artifact.top1,
                        artifact.agreement, artifact.overlap, artifact.dense_agreement, timing.latency_ms_p50,
                        timing.latency_ms_p90, timing.latency_ms_p99, timing.images_per_sec, timing.speedup,
                        timing.runs, timing.stable, timing.run, command, images=_images(artifact, "evaluated"),
                        compared=_images(artifact, "compared"))

    def _notes(self, rows: Sequence[SweepRow]) -> list[str]:
        notes = []
        if self.config.data is None:
            notes.append("Compared on noise, which real images may contradict; pass --data FOLDER or --data digits.")
        if any(not row.stable for row in rows):
            notes.append("Latencies marked ~ did not settle within 2%; quiet the machine or raise --seconds.")
        few = min((row.runs for row in rows), default=ENOUGH_RUNS)
        if few < ENOUGH_RUNS:
            notes.append(f"Some p99 are of {few} calls only, so hardly more than the slowest; raise --seconds.")
        return notes


def _run_notes(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Notes about rows from several runs or from other machines."""
    notes = []
    machines = {run["run"]: machine_name(run["machine"]) for run in runs}
    if len(machines) > 1:
        where = " on different machines" if len(set(machines.values())) > 1 else ""
        notes.append(f"Rows stem from {len(machines)} runs{where}, at different times: compare speed-ups, each within "
                     "its run, rather than milliseconds.")
    here = machine_name(machine())
    foreign = {run: name for run, name in machines.items() if name != here}
    if foreign:
        which, names = ", ".join(map(str, foreign)), "; ".join(dict.fromkeys(foreign.values()))
        several = "s" if len(foreign) > 1 else ""
        notes.append(f"Rows of run{several} {which} were measured on another machine ({names}); pass a new -o to "
                     "measure here.")
    return notes


def _is_unchanged(path: Path, digest: str) -> bool:
    """True if the file has this sha256; a graph records that of its data file, which is checked, too."""
    if not path.is_file() or sha256(path) != digest:
        return False
    try:
        return path.suffix != ".onnx" or bool((path, *data_files(path)))
    except ArtifactError:
        return False


def _failed_the_gate(artifact: Artifact) -> bool:
    """True if the export itself rejected the artifact; that result does not depend on the data of the sweep."""
    return bool(artifact.rejected) and artifact.judged is None


def _shares(report: ParityReport) -> dict[str, Any]:
    """Agreement and overlap, each at the batch size and stage where it is lowest."""
    overlaps = [share for b in report.batches for share in (b.overlap_forgiven or b.overlap)]
    return {"agreement": min(b.top1_agreement for b in report.batches), "overlap": min(overlaps, default=None)}


def _images(artifact: Artifact, which: str) -> int | None:
    """The number of images that the artifact was `evaluated` (without labels: compared with the dense model) or
    `compared` on."""
    seen = artifact.seen or {}
    return seen.get(which, seen.get("compared"))


def _latency(file: str, run: int, how: dict[str, Any], timing: Timing) -> Latency:
    return Latency(file, timing.batch, run, how, timing.latency_ms_p50, timing.latency_ms_p90, timing.latency_ms_p99,
                   timing.images_per_sec, timing.runs, timing.stable, timing.speedup)
