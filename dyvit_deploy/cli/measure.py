"""The commands that measure: eval, check, bench, compare, sweep."""
from __future__ import annotations

import sys
from typing import Any

import click

from ..config import LoadConfig
from ..sweep.target import Target
from .options import Numbers, device_option, json_option, run_options, sweep_options
from .terminal import fail_notes, hashed, note, show, show_lines, show_progress, skipped_notes, step


@click.command("eval")
@click.argument("artifact")
@click.option("--data", required=True, help="digits, wds/PATH, hfds/NAME, or a folder with a subfolder per class.")
@click.option("--split", default="test", show_default=True, help="train, val or test.")
@click.option("--images", type=click.IntRange(min=1), help="At most this many.")
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Images per run.")
@run_options
@device_option
@json_option
def evaluate(artifact: str, data: str, split: str, images: int | None, batch: int, load: LoadConfig,
             device: str | None, json_file: str | None) -> None:
    """Accuracy, calibration and kept patches of a checkpoint, graph or engine on labelled images.

    torchrun -m dyvit_deploy eval ... spreads the images over processes.
    """
    from ..evaluation.evaluate import EvalConfig, evaluate_artifact

    files = hashed(json_file, artifact)
    report = evaluate_artifact(artifact, data, EvalConfig(split, images, batch, device), load, show_progress)
    show(report, json_file, files=files)
    skipped_notes(report.skipped)
    note(*report.notes)
    fail_notes(report.failures)
    sys.exit(not report)


@click.command()
@click.argument("reference")
@click.argument("candidate")
@click.option("--data", help="An image folder or digits; without it noise, which proves less.")
@click.option("--images", type=int, default=64, show_default=True, help="At most this many.")
@click.option("--batch", type=Numbers(int), default="1,8", show_default=True, help="Batch sizes of the candidate.")
@click.option("--tolerance", type=float, help="Largest logit error, in place of the precision's own bound.")
@run_options
@device_option
@json_option
def check(reference: str, candidate: str, data: str | None, images: int, batch: tuple[int, ...],
          tolerance: float | None, load: LoadConfig, device: str | None, json_file: str | None) -> None:
    """Compare two artifacts; exit 1 when they disagree."""
    from ..parity.compare import CheckConfig, check_artifacts

    config, files = CheckConfig(images, batch, error=tolerance, device=device), hashed(json_file, reference, candidate)
    report = check_artifacts(reference, candidate, data, config, load, show_progress)
    show(report, json_file, files=files)
    skipped_notes(report.skipped)
    note(*report.notes)
    fail_notes(report.failures)
    sys.exit(not report)


@click.command()
@click.argument("artifacts", nargs=-1, required=True)
@click.option("--batch", "batches", type=Numbers(int), default="1,8,32", show_default=True, help="Batch sizes.")
@click.option("--baseline", help="Compare with this artifact instead of the dense backbone.")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Time limit per batch size.")
@click.option("--stable", type=float, default=0.02, show_default=True,
              help="A batch size is done when the 95 % interval of every median is within this share of it.")
@click.option("--threads", type=int, default=0, help="Threads of ONNX Runtime and OpenVINO; default: all cores.")
@click.option("--cpus", type=Numbers(int), default=(), help="Run on these cores only: 0,1.")
@click.option("--peak", is_flag=True, help="Also measure the machine's matrix-product peak, as a bound.")
@click.option("--profile", is_flag=True, help="Also show where the time goes: stem, blocks, predictors, gathers.")
@click.option("--streams", type=int, default=1, show_default=True, help="CUDA streams that an engine runs on at once.")
@click.option("--cuda-graph", is_flag=True, help="Run engines, and checkpoints on a GPU, as captured CUDA graphs; "
              "checkpoints then have the exact rewrites.")
@click.option("--fp16", is_flag=True, help="Run checkpoints in float16, keep scores included.")
@click.option("--bf16", is_flag=True, help="Run checkpoints in bfloat16, keep scores included.")
@click.option("--transfers", is_flag=True, help="On a GPU, count the copies between host and GPU in the latency.")
@run_options
@device_option
@json_option
def bench(artifacts: tuple[str, ...], batches: tuple[int, ...], baseline: str | None, seconds: float, stable: float,
          threads: int, cpus: tuple[int, ...], peak: bool, profile: bool, transfers: bool, load: LoadConfig,
          device: str | None, json_file: str | None) -> None:
    """Time artifacts against the dense backbone, in one run."""
    from ..bench.report import BenchConfig
    from ..deploy.dense import benchmark

    config = BenchConfig(batches=batches, seconds=seconds, stable=stable, baseline=baseline, device=device,
                         threads=threads, cpus=cpus, peak=peak, profile=profile, transfers=transfers)
    files = hashed(json_file, *artifacts, baseline)
    report = benchmark(artifacts, config, load, show_progress)
    show(report, json_file, files=files)
    note(*report.notes)


@click.command()
@click.argument("before")
@click.argument("after")
@json_option
def compare(before: str, after: str, json_file: str | None) -> None:
    """Compare two reports of dyvit bench --json: what became faster, what slower. It judges nothing: exit 0."""
    from ..bench.compare import compare_runs

    report = compare_runs(before, after)
    show(report, json_file)
    note(*report.notes)


@click.command()
@click.argument("checkpoint", required=False)
@click.option("-o", "--out", default="sweep", show_default=True, help="Folder for artifacts, results and charts.")
@sweep_options
@json_option
def sweep(checkpoint: str | None, out: str, given: dict[str, Any], load: LoadConfig, targets: tuple[Target, ...],
          json_file: str | None) -> None:
    """Measure keep ratios x precisions x backends x batch sizes, and name the best for a --target.

    What lies in the folder is not measured again, and options that are left out are as they were: called again, it
    goes on, and with nothing but --target in a folder that is complete it only reads. The checkpoint may be left out,
    too, where one was swept.
    """
    from ..deploy.report import Progress
    from ..sweep.run import run_sweep
    from ..sweep.store import recall
    from .progress import BuildBar

    with BuildBar() as bar:
        report = run_sweep(checkpoint, out, recall(out, given), load, Progress(step, show_progress, bar.update))
    report = report.aimed_at(targets)
    show(report, json_file, files=[row.artifact for row in report.rows])
    note(*report.left_out(), *report.notes, f"Artifacts, results and charts are in {out}/.")
    fail_notes(report.failures)
    show_lines(report.advice)
    sys.exit(not report)
