"""Kills commands at chosen writes, and checks what they leave: `python tests/kills.py --kills 100`.

Every command runs once to count its write events (an open for writing, a rename, a removal, a new folder or a sync), in
an empty folder and over the results of an earlier run. It is then killed with SIGKILL right before one of them, chosen
evenly; at a sync, half of the file is cut off first. After that
- every file under a final name is whole, or is refused with a sentence that says to repeat the command;
- the same command (training: with --resume, once there is something to resume) succeeds;
- it leaves the files of an undisturbed run, byte for byte unless they contain times, and no temporary file, in TMPDIR
  neither.

With --twice, each command is also stopped in the middle and started a second time: the second must be refused by the
name of the file, and the first, when it goes on, must end as if alone.

Runs are forked from one process that has imported everything, so that each takes a second.
"""
from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from forks import Counter, Fork, forked

INPUTS = "inputs"
REPEAT = ("repeat", "build it again", "interrupted")
# Contain times or measurements, which differ between equal runs.
VARYING = (".json", ".html", ".plan", ".png", ".svg", ".parquet", ".md")


@dataclasses.dataclass(frozen=True)
class Case:
    """A command in a folder with `inputs/`; `earlier` is what ran there before, if anything. It writes into `out/`."""

    name: str
    arguments: tuple[str, ...]
    earlier: tuple[str, ...] = ()
    small_limit: bool = False

    @property
    def resumes(self) -> bool:
        return self.arguments[0] == "train"


def cases() -> list[Case]:
    """Every writing command, in an empty folder and over earlier results."""
    found = []
    for name, *arguments in (
            ("export", "export", "CHECKPOINT", "-o", "out/m.onnx"),
            ("two files", "export", "CHECKPOINT", "-o", "out/m.onnx"),
            ("int8", "export", "CHECKPOINT", "--int8", "--calib", f"{INPUTS}/classes", "-o", "out/m.onnx"),
            ("openvino", "export", "CHECKPOINT", "--format", "openvino", "-o", "out/m.xml"),
            ("triton", "export", "CHECKPOINT", "--format", "triton", "--keep-ratios", "0.9,0.5", "--model-version",
             "VERSION", "-o", "out/repository"),
            ("build", "build", f"{INPUTS}/tiny.onnx", "--format", "rtx", "--allow-precision-fallback", "-o",
             "out/m.plan"),
            ("calibrate", "calibrate", f"{INPUTS}/tiny.onnx", "--data", f"{INPUTS}/classes", "-o", "out/ranges.json"),
            ("sensitivity", "sensitivity", f"{INPUTS}/tiny.onnx", "--data", f"{INPUTS}/classes", "--chart",
             "out/layers.png", "--json", "out/layers.json"),
            ("train", "train", "--model", "tiny", "--data", f"{INPUTS}/classes", "--keep-ratio", "0.5", "--epochs", "2",
             "--dense-epochs", "1", "--batch", "8", "-o", "out/run"),
            ("predict", "predict", "CHECKPOINT", f"{INPUTS}/classes", "--batch", "4", "--csv", "out/rows.csv",
             "--parquet", "out/rows.parquet"),
            ("sweep", "sweep", "CHECKPOINT", "--keep-ratios", "RATIOS", "--precisions", "fp32", "--backends",
             "onnx,openvino", "--batch", "1", "--seconds", "0.05", "-o", "out/sweep"),
            ("report", "report", f"{INPUTS}/models", "-o", "out/page.html"),
            ("visualize", "visualize", "CHECKPOINT", f"{INPUTS}/classes", "-o", "out/figures"),
            ("quickstart", "quickstart", "-o", "out/quickstart")):
        small = name == "two files"
        # Training does not start over.
        for again in (False,) if name == "train" else (False, True):
            first = {"CHECKPOINT": f"{INPUTS}/other.safetensors", "VERSION": "1", "RATIOS": "0.9"}
            now = {"CHECKPOINT": f"{INPUTS}/tiny.safetensors", "VERSION": "2" if again else "1", "RATIOS": "0.9,0.5"}
            if name in ("triton", "sweep"):
                first["CHECKPOINT"] = now["CHECKPOINT"]
            earlier = tuple(first.get(a, a) for a in arguments) if again else ()
            found.append(Case(f"{name}, again" if again else name, tuple(now.get(a, a) for a in arguments), earlier,
                              small))
    return found


def prepare(folder: Path) -> None:
    """Makes the inputs of all cases."""
    from helpers import photo_folder, tiny_checkpoint, tiny_graph
    folder.mkdir()
    tiny_checkpoint(folder, seed=1).rename(folder / "other.safetensors")
    tiny_graph(folder)
    tiny_checkpoint(folder)
    for split in ("train", "val"):
        photo_folder(folder / "classes" / split, 8, classes=2)
    models = folder / "models"
    models.mkdir()
    tiny_graph(models)


def command(folder: Path, case: Case, arguments: tuple[str, ...], fatal: int = 0,
            how: signal.Signals = signal.SIGKILL) -> int:
    """Runs a command of `case` in this process, which ends with it; returns the number of its write events."""
    os.chdir(folder)
    tempfile.tempdir = str(folder / "tmp")
    os.environ["TMPDIR"] = tempfile.tempdir
    if case.small_limit:
        from dyvit_deploy.graph import limits
        limits.ONE_FILE_LIMIT = 20_000
    counter = Counter((folder / "out", folder / "tmp"), fatal, how)
    from dyvit_deploy.cli.main import main
    try:
        main(list(arguments), prog_name="dyvit")
    except SystemExit as error:
        if error.code:
            raise
    return counter.count


def check(folder: Path) -> list[str]:
    """Opens everything below `out/`; returns what is damaged."""
    from dyvit_deploy.errors import DyvitError
    os.chdir(folder)
    found = []
    for path in sorted((folder / "out").rglob("*")):
        inside = path.relative_to(folder).parts
        if path.is_dir() and not (path.name == "repository" and any(path.iterdir())):
            continue
        if any(part.startswith(".dyvit-") for part in inside) or path.name.endswith(".partial"):
            continue
        try:
            READERS.get("/" if path.is_dir() else path.suffix, lambda _: None)(path)
        except DyvitError as error:
            if not any(word in str(error) for word in REPEAT):
                found.append(f"{path.name} is refused without saying what to do: {error}")
        except Exception as error:
            found.append(f"{path.name} is damaged: {type(error).__name__} {error}")
    return found


def _run(path: Path) -> None:
    from dyvit_deploy.bench.process import make_feed
    from dyvit_deploy.runners.open import open_runner
    with open_runner(path) as runner:
        runner.infer(make_feed(runner, 1))


def _facts(path: Path) -> None:
    from dyvit_deploy.inspect.artifact import inspect_artifact
    inspect_artifact(path)


def _plan(path: Path) -> None:
    from dyvit_deploy.engine.sidecar import is_altered, read_sidecar
    facts = read_sidecar(path)
    # Loading asks for --trust in both cases.
    if facts is not None and is_altered(path, facts):
        return
    _facts(path)


def _picture(path: Path) -> None:
    from PIL import Image
    with Image.open(path) as image:
        image.load()


def _ends(*ends: str) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        if not path.read_text().rstrip(" ").endswith(ends):
            raise ValueError("it is cut off")
    return read


def _table(path: Path) -> None:
    import pyarrow.parquet
    pyarrow.parquet.read_table(path)


def _repository(path: Path) -> None:
    from dyvit_deploy.serving.repository import read_repository
    read_repository(path)


READERS: dict[str, Callable[[Path], None]] = {
    "/": _repository, ".onnx": _run, ".xml": _run, ".plan": _plan, ".safetensors": _facts, ".png": _picture,
    ".json": lambda path: json.loads(path.read_text()), ".csv": _ends("\n"), ".html": _ends("</html>\n", "</html>"),
    ".svg": _ends("</svg>\n"), ".parquet": _table, ".yaml": _ends("\n"), ".pbtxt": _ends("\n")}


def listing(folder: Path) -> dict[str, str]:
    """The files below `out/` with the hashes of those that do not vary, and all temporary ones."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if (path.is_file() and name.startswith(("out/", "tmp/"))) or name.startswith("tmp/"):
            varies = path.suffix in VARYING or path.is_dir()
            found[name] = "" if varies else hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return found


class Trial:
    """One case: its undisturbed run, and its kills. `scratch` is an empty folder for it."""

    def __init__(self, case: Case, inputs: Path, scratch: Path, log: Path) -> None:
        self.case, self.log, self.before, self.folder = case, log, scratch / "before", scratch / "now"
        self.before.mkdir(parents=True)
        (self.before / INPUTS).symlink_to(inputs)
        for inner in ("tmp", "out"):
            (self.before / inner).mkdir()
        if case.earlier:
            self._undisturbed(self.before, case.earlier)
        self._reset()
        self.events = self._undisturbed(self.folder, case.arguments)
        self.expected = listing(self.folder)

    def _reset(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.before, self.folder, symlinks=True)

    def _undisturbed(self, folder: Path, arguments: tuple[str, ...]) -> int:
        """The number of write events of a run."""
        code, events = forked(command, self.log, folder, self.case, arguments)
        if code:
            raise RuntimeError(f"{self.case.name} fails undisturbed, see {self.log}")
        return int(events)

    def kill(self, number: int) -> list[str]:
        """What is wrong after a kill at event `number`."""
        self._reset()
        folder = self.folder
        code, _ = forked(command, self.log, folder, self.case, self.case.arguments, number)
        if code != -signal.SIGKILL:
            return [f"was not killed, but ended with {code}"]
        _, wrong = forked(check, self.log, folder)
        wrong = ["the check itself failed"] if wrong is None else wrong
        again = self.case.arguments
        if self.case.resumes and list((folder / "out").rglob("last.safetensors")):
            again = (*again, "--resume")
        code, _ = forked(command, self.log, folder, self.case, again)
        if code:
            return [*wrong, f"the repetition ends with {code}"]
        return wrong + self._differences()

    def twice(self) -> list[str]:
        """What is wrong after a second start while the first is in the middle of its writes."""
        self._reset()
        first = Fork(command, self.log, self.folder, self.case, self.case.arguments, self.events // 2, signal.SIGSTOP)
        os.waitpid(first.process, os.WUNTRACED)
        said = self.log.stat().st_size
        code, _ = forked(command, self.log, self.folder, self.case, self.case.arguments)
        with self.log.open("rb") as file:
            file.seek(said)
            refused = b"Another dyvit is writing" in file.read()
        os.kill(first.process, signal.SIGCONT)
        wrong = [] if refused and code == 2 else [f"the second is not refused, but ends with {code}"]
        code, _ = first.wait()
        return [*wrong, *([f"the first ends with {code}"] if code else []), *self._differences()]

    def _differences(self) -> list[str]:
        """What the folder holds otherwise than after an undisturbed run."""
        found, wanted = listing(self.folder), self.expected
        return ([f"{name} is missing afterwards" for name in wanted.keys() - found.keys()]
                + [f"{name} is left over" for name in found.keys() - wanted.keys()]
                + [f"{name} has other bytes" for name in wanted.keys() & found.keys() if wanted[name] != found[name]])


def spread(events: int, kills: int) -> list[int]:
    """Events 1 .. `events`, evenly spread."""
    return sorted({max(1, round((i + 0.5) * events / kills)) for i in range(kills)}) if events and kills else []


def warm_up(cache: Path) -> None:
    """Imports what the commands import, and makes them small. No library may start threads before the forks."""
    import onnxruntime  # noqa: F401
    from helpers import tiny_config
    from traces import Traces

    from dyvit_deploy.data import digits
    from dyvit_deploy.demo import quickstart
    from dyvit_deploy.deploy import pipeline
    from dyvit_deploy.export import onnx as exporter
    from dyvit_deploy.model import zoo
    from dyvit_deploy.training import command  # noqa: F401
    exporter._trace = Traces(cache)
    digits.COUNTS = dict.fromkeys(digits.COUNTS, 40)
    quickstart.SECONDS = pipeline.TIMED_SECONDS = 0.05
    zoo.MODELS["tiny"] = tiny_config()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="In all, evenly over the cases.")
    parser.add_argument("--only", help="Names of cases, separated by commas.")
    parser.add_argument("--twice", action="store_true", help="Also start each command a second time.")
    parser.add_argument("--traces", type=Path, help="A folder in which exports are kept for the next call.")
    parser.add_argument("--log", type=Path, default=Path("kills.log"), help="What the commands say.")
    options = parser.parse_args()
    log, failed, done = options.log.resolve(), 0, 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chosen = [case for case in cases() if not options.only or case.name.split(",")[0] in options.only.split(",")]
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        traces = options.traces or Path(name) / "traces"
        traces.mkdir(exist_ok=True)
        warm_up(traces)
        inputs = Path(name) / INPUTS
        code, _ = forked(prepare, log, inputs)
        if code:
            raise SystemExit(f"The inputs could not be made, see {log}")
        for index, case in enumerate(chosen):
            kills = options.kills // len(chosen) + (index < options.kills % len(chosen))
            trial = Trial(case, inputs, Path(name) / str(index), log)
            wrong = {f"kill at {number}": trial.kill(number) for number in spread(trial.events, kills)}
            if options.twice:
                wrong["second start"] = trial.twice()
            faults = sum(map(bool, wrong.values()))
            done, failed = done + len(wrong), failed + faults
            print(f"{case.name}, {trial.events} events: {len(wrong)} interrupted, {faults} with faults", flush=True)
            for what, lines in wrong.items():
                for line in lines:
                    print(f"  {what}: {line}", flush=True)
    print(f"{done} interrupted, {failed} with faults")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
