#!/usr/bin/env python3
"""What pruning gains on a GPU: the figures of the README's GPU table, the most valuable first.

    python benchmarks/gpu.py                                        as many rows as fit into 6 minutes
    python benchmarks/gpu.py --resume FILE                          adds the rows that FILE lacks
    python benchmarks/gpu.py --only graph,rtx                       only these parts
    python benchmarks/gpu.py --device cpu --quick -o trial.json     a rehearsal without a GPU

Each timing is one call on a batch that is already on the GPU, until the GPU is done. Dense and pruned take turns in
one loop, because clocks drift with heat. Each pruned row has two ratios: against the dense model without rewrites, and
against the dense model with the rewrites of the pruned graph; the ceiling beside each is the ratio of
multiply-accumulates, counted with the rewrites. Compute is the time between two events on the GPU; TFLOP/s are
calculated from it, to compare with the peak of matrix products in the same run. Weights are random: time does not
depend on them. Float32 is without TF32. Float16 is model.half() in PyTorch, predictors included; in graphs the keep
scores, the input and the logits stay float32. Eager PyTorch runs the model without rewrites. Graphs and engines are
those that `dyvit export` makes for that target, with their kept tokens; the demo student, exported in the same way, is
compared with float32 PyTorch.

Every row is written as soon as it is measured. The result lists what is missing, was refused, failed, took too long or
did not fit into the time. A source tree that is not installed needs PYTHONPATH=. before the command.
"""
from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_checks import check_pytorch, check_streams, time_training
from gpu_parts import Bench, Job, measure_peak, profile_kernels, time_sides
from speed import RESULTS

import dyvit_deploy as dv
from dyvit_deploy.artifacts.facts import library_versions
from dyvit_deploy.artifacts.files import check_target, require_file, write_json
from dyvit_deploy.engine.library import open_library
from dyvit_deploy.errors import BackendError, MissingDependency, reason
from dyvit_deploy.machine.hardware import machine
from dyvit_deploy.machine.tf32 import require_full_float32
from dyvit_deploy.optional import require
from dyvit_deploy.runners.ort import PROVIDERS, cuda_works

# Minutes of the whole run, and seconds of timing a row.
MINUTES, SECONDS = 6.0, 1.0
BATCHES = (1, 8, 32, 128, 256)
LIBRARIES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "triton", "numpy",
             "nvidia-modelopt", "tensorrt", "tensorrt-rtx", "lightning-fabric", "lightning")
EAGER, GRAPH, COMPILED = "PyTorch eager", "PyTorch CUDA graph", "PyTorch compiled"
MEASURES: dict[str, Callable[[Bench, Job], dict[str, Any]]] = {
    "peaks": measure_peak, "parity": check_pytorch, "streams": check_streams, "training": time_training,
    "profile": profile_kernels} | dict.fromkeys(("graph", "eager", "compiled", "rtx", "trt", "ort"), time_sides)
# Expected seconds per row of each part, until one has been measured. A row is cut after PATIENCE times as long, plus
# START for loading libraries.
EXPECTED: dict[str, float] = {"peaks": 1, "parity": 3, "graph": 4, "streams": 6, "eager": 4, "training": 15,
                              "compiled": 60, "profile": 3, "rtx": 30, "trt": 90, "ort": 20}
# Compilation dominates, whatever the part.
EXPECTED_COMPILED = 60.0
PATIENCE, START = 3, 20


def jobs(quick: bool) -> list[Job]:
    """Everything to measure, the most valuable first: the main rows of the table, and those that need no compiler."""
    model = "digits-s" if quick else "deit-s"
    others = () if quick else ("deit-b", "lvvit-s")
    batches, small = ((1, 2), (2,)) if quick else ((256, 32, 1, 8, 128), (256, 32, 1))

    def rows(part: str, backend: str, precision: str, models: Sequence[str], sizes: Sequence[int]) -> list[Job]:
        return [Job(part, backend, precision, name, batch) for name, batch in itertools.product(models, sizes)]

    return [
        *(Job("peaks", "PyTorch", precision) for precision in ("float16", "bfloat16", "float32", "float8", "")),
        *(Job("parity", backend, precision, "digits-s") for backend, precision in (
            ("eager", "float32"), ("CUDA graph", "float32"), ("CUDA graph", "float16"), ("CUDA graph", "bfloat16"))),
        *rows("graph", GRAPH, "float16", (model,), batches), *rows("graph", GRAPH, "float16", others, small),
        Job("streams", "CUDA graph"), Job("streams", "no graph"),
        *rows("eager", EAGER, "float16", (model,), small), *rows("eager", GRAPH, "bfloat16", (model,), small),
        *rows("eager", GRAPH, "float32", (model,), small),
        Job("training", "PyTorch", "bfloat16", "digits-s"),
        *(() if quick else (Job("training", "PyTorch", "float16", "digits-s"),)),
        *rows("compiled", COMPILED, "float16", (model,), small[:2]),
        *(() if quick else (Job("training", COMPILED, "bfloat16", "digits-s"),)),
        # PyTorch's profiler may stay attached and slow down what is timed after it.
        *rows("profile", EAGER, "float16", (model,), small),
        *rows("rtx", "TensorRT for RTX", "float16", (model,), small),
        *rows("trt", "TensorRT", "float16", (model,), small),
        *rows("ort", "ONNX Runtime", "float32" if quick else "float16", (model,), small)]


def probe(part: str, device: str) -> None:
    """Raises MissingDependency or BackendError when a part cannot run here; called before its first row."""
    if part in ("rtx", "trt"):
        open_library(part)
        if device == "cpu":
            raise BackendError("engines run on a GPU only")
    elif part == "ort":
        require("onnxruntime")
        if device == "cuda" and not cuda_works():
            raise MissingDependency("ONNX Runtime finds no working CUDA here; install onnxruntime-gpu, its CUDA "
                                    "libraries and the NVIDIA driver")


class TimeUp(BaseException):
    """A row took too long. Not an Exception, so that libraries cannot catch it as one of their errors."""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises TimeUp within the block once the time is up."""
    def stop(number: int, frame: Any) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def why(error: Exception) -> str:
    return str(error) if isinstance(error, dv.DyvitError) else f"{type(error).__name__}: {reason(error)}"


class Run:
    """One run of the script: its deadline, and the result, which is written after every row."""

    def __init__(self, result: dict[str, Any], bench: Bench, end: float,
                 save: Callable[[dict[str, Any]], None]) -> None:
        self.result, self.bench, self.end, self._save = result, bench, end, save
        self.took: dict[tuple[str, ...], float] = {}
        self.unusable: set[str] = set()
        self.broken = False

    def go_through(self, wanted: list[Job]) -> None:
        """Measures the jobs that fit into the time, and records those that do not."""
        for job in wanted:
            if self.broken:
                self._note("left_out", job, "the GPU failed in this process; continue with --resume")
            elif job.part not in self.unusable:
                self._try(job)
            self._save(self.result)

    def _try(self, job: Job) -> None:
        began = time.perf_counter()
        guess = EXPECTED_COMPILED if job.backend == COMPILED else EXPECTED[job.part]
        expected, left = self.took.get(job[:2], guess), self.end - began
        if expected > left:
            self._note("left_out", job, f"{expected:.0f} s were needed, and {max(0.0, left):.0f} s left")
            return
        limit = min(left, PATIENCE * max(expected, guess) + START)
        try:
            # Frees the memory of the row before.
            gc.collect()
            torch.cuda.empty_cache()
            with at_most(limit):
                if job[:2] not in self.took:
                    probe(job.part, self.bench.device)
                row = MEASURES[job.part](self.bench, job)
                # A value that JSON cannot represent, such as the error of a NaN logit, is a failure of its row.
                json.dumps(row, allow_nan=False)
            seconds = time.perf_counter() - began
            self.took[job[:2]] = seconds
            self.result["rows"].append(job._asdict() | {"seconds": seconds, "gpu": self.result["machine"]["gpu"]} | row)
            say(f"{job}: {summary(row)} ({seconds:.1f} s)")
        except TimeUp:
            self._note("cut", job, f"it took more than {limit:.0f} s")
        except MissingDependency as error:
            self.unusable.add(job.part)
            self._note("missing", job, why(error))
        except Exception as error:
            # One row must not stop the run.
            first = job[:2] not in self.took
            if first and job.part in ("rtx", "trt", "ort"):
                self.unusable.add(job.part)
            trace = "".join(traceback.format_exception(error)).splitlines()[-40:]
            self._note("refused" if first and isinstance(error, BackendError) else "failed", job, why(error), trace)
            self.broken = self.bench.device == "cuda" and not gpu_answers()

    def _note(self, kind: str, job: Job, text: str, trace: Sequence[str] = ()) -> None:
        self.result[kind].append(job._asdict() | {"reason": text} | ({"trace": list(trace)} if trace else {}))
        say("\n".join([f"{job}: {kind.replace('_', ' ')}: {text}", *(trace if kind == "failed" else ())]))


def gpu_answers() -> bool:
    """False once an error, such as an illegal access, has made the GPU useless for this process."""
    try:
        torch.rand(1, device="cuda")
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def summary(row: dict[str, Any]) -> str:
    """A row in a few words, for the log."""
    if "speedup" in row:
        dense, pruned = (row[side]["images_per_sec"] for side in ("dense", "pruned"))
        return f"{dense:.1f} -> {pruned:.1f} images/s, {row['speedup']:.2f}x where {row['ceiling']:.2f}x is the ceiling"
    shown = {name: value for name, value in row.items() if isinstance(value, (int, float, bool))}
    return ", ".join(f"{name} {value:.4g}" for name, value in shown.items()) or "done"


NAMED = ("missing", "refused", "failed", "cut", "left_out")


def start(old: dict[str, Any] | None, device: str, config: dict[str, Any]) -> dict[str, Any]:
    """A new result, or `old`, to which rows are added; see `same_setup`."""
    here = machine()
    result: dict[str, Any] = {
        "machine": here, "versions": versions(), "device": device, "config": config,
        "started": now(), "finished": None, "interrupted": False, "float16_graph_by": None, "rows": []}
    if old:
        result |= {"rows": list(old["rows"]), "started": old["started"], "float16_graph_by": old["float16_graph_by"]}
    # Failures of the parts that run again now are dropped.
    return result | {kind: [entry for entry in (old or {}).get(kind, ()) if entry["part"] not in config["only"]]
                     for kind in NAMED}


def same_setup(old: dict[str, Any], device: str, quick: bool) -> bool:
    """True when `old` was measured on a card like this one, with these libraries, and was a rehearsal like this."""
    return bool(old["device"] == device and old["machine"]["gpu"] == machine()["gpu"]
                and old["config"]["quick"] == quick and old["versions"] == versions())


def versions() -> dict[str, str]:
    """The versions of the libraries, the GPU's driver and PyTorch's CUDA."""
    return library_versions(*LIBRARIES) | driver()


def driver() -> dict[str, str]:
    """The versions of the GPU's driver and of PyTorch's CUDA."""
    versions = {"cuda": torch.version.cuda} if torch.version.cuda else {}
    # A machine may lack nvidia-smi.
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        versions["driver"] = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return versions


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def say(text: str) -> None:
    print(f"{now()[11:19]} {text}", file=sys.stderr, flush=True)


def measure(wanted: list[Job], result: dict[str, Any], options: argparse.Namespace, end: float,
            path: Path) -> dict[str, Any]:
    done = {tuple(row[field] for field in Job._fields) for row in result["rows"]}
    batches = (1, 2) if options.quick else BATCHES
    with tempfile.TemporaryDirectory(prefix="dyvit-gpu-") as name:
        bench = Bench(options.device, 0.1 if options.quick else SECONDS, Path(name), batches, options.quick)

        def save(found: dict[str, Any]) -> None:
            write_json(path, found | {"float16_graph_by": bench.float16_graph_by or found["float16_graph_by"]})

        try:
            Run(result, bench, end, save).go_through([job for job in wanted if job not in done])
        except KeyboardInterrupt:
            result["interrupted"] = True
        result["finished"] = now()
        save(result)
    counts = ", ".join(f"{len(result[kind])} {kind.replace('_', ' ')}" for kind in NAMED if result[kind])
    say(f"{len(result['rows'])} rows{', ' if counts else ''}{counts}: {path}")
    return result


def read_result(path: Path, device: str, quick: bool) -> dict[str, Any] | None:
    """The result to resume; None, with a message, if it is of another card, other libraries or a rehearsal.

    Raises:
        DyvitError: it is not a result of this script.
    """
    try:
        old: dict[str, Any] = json.loads(require_file(path).read_text())
        same, whose = same_setup(old, device, quick), old["machine"]["gpu"] or old["device"]
        known = {"rows": old["rows"], "started": str(old["started"]), "float16_graph_by": old["float16_graph_by"]}
        # Checks that each row and each entry has the fields of a job.
        {tuple(entry[field] for field in Job._fields) for kind in ("rows", *NAMED) for entry in old[kind]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise dv.DyvitError(f"{path} is no result of this script; leave out --resume.") from error
    if same:
        return old | known
    say(f"{path} is of {whose} with {old['versions']}, or a rehearsal, and this run is not: this is a new result")
    return None


def unused(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, ... that does not exist: tables.py reads the rows of all of them."""
    names = itertools.chain([path], (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2)))
    return next(name for name in names if not name.exists())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"limit of the whole run; default: {MINUTES:g}")
    parser.add_argument("--device", choices=PROVIDERS, default="cuda", help="cpu rehearses with stand-ins")
    parser.add_argument("--only", metavar="PART,...", help=f"parts to measure, of {', '.join(EXPECTED)}")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="add the rows that FILE lacks")
    parser.add_argument("--quick", action="store_true", help="the smallest model, a fraction of a second per row")
    parser.add_argument("-o", "--output", type=Path,
                        help="default: the resumed FILE, else a new benchmarks/results/gpu-CARD.json")
    options = parser.parse_args()
    options.only = {part.strip() for part in options.only.split(",") if part.strip()} if options.only else set(EXPECTED)
    if unknown := sorted(options.only - set(EXPECTED)):
        parser.error(f"there is no part {', '.join(unknown)}; choose from {', '.join(EXPECTED)}")
    if not 0 < options.minutes < float("inf"):
        parser.error(f"--minutes is a positive number, not {options.minutes:g}")
    if options.output is None and options.resume is None and (options.quick or options.device == "cpu"):
        parser.error("a rehearsal is not kept in benchmarks/results; say with -o where to write it")
    return options


def main() -> None:
    began = time.perf_counter()
    options = parse()
    if options.device == "cpu":
        # Otherwise other work on the machine would stall it.
        torch.set_num_threads(1)
    elif not torch.cuda.is_available():
        sys.exit("No NVIDIA GPU with a driver works here; rehearse with --device cpu --quick -o FILE.")
    try:
        if options.device == "cuda":
            require_full_float32()
        # Turns TF32 off in all of NVIDIA's libraries.
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
        slug = re.sub(r"[^a-z0-9]+", "-", str(machine()["gpu"]).lower())
        old = read_result(options.resume, options.device, options.quick) if options.resume else None
        if old is None and options.output is None and (options.quick or options.device == "cpu"):
            raise dv.DyvitError("A rehearsal is not kept in benchmarks/results; say with -o where to write it.")
        rehearsal = options.quick or options.device == "cpu"
        if options.device == "cpu":
            say("This is a rehearsal with stand-ins for CUDA: it tests that the code runs; its figures mean nothing.")
        if rehearsal and options.output and options.output.resolve().parent == RESULTS.resolve():
            raise dv.DyvitError("A rehearsal is not kept in benchmarks/results; write it elsewhere.")
        path = check_target(options.output or (old and options.resume) or unused(RESULTS / f"gpu-{slug}.json"))
        config = {"keep_ratio": 0.7, "minutes": options.minutes, "quick": options.quick, "tf32": False,
                  "pytorch_float16_by": "model.half()", "only": sorted(options.only)}
        result = start(old, options.device, config)
        wanted = [job for job in jobs(options.quick) if job.part in options.only]
        measure(wanted, result, options, began + 60 * options.minutes, path)
    except dv.DyvitError as error:
        sys.exit(str(error))
    sys.exit(130 if result["interrupted"] else 0 if result["rows"] else 1)


if __name__ == "__main__":
    main()
