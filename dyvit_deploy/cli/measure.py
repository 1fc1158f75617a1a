"""The commands that measure: eval, check, bench, compare, sweep."""
from __future__ import annotations

import sys
from typing import Any

import click

from ..bench.config import BenchConfig
from ..config import LoadConfig
from ..errors import ConfigError
from ..evaluation.config import EvalConfig
from ..parity.config import CheckConfig
from ..sweep.grid import SweepConfig
from ..sweep.target import Target, parse_targets
from .options import ConfigOptions, json_option, run_options
from .progress import show_progress
from .terminal import fail_notes, finish, hashed, note, show, show_lines, step


@click.command("eval")
@click.argument("artifact")
@click.option("--data", required=True, help="digits, wds/PATH, hfds/NAME, or a folder with a subfolder per class.")
@ConfigOptions(EvalConfig, "config")
@run_options
@json_option
def evaluate(artifact: str, data: str, config: EvalConfig, load: LoadConfig, json_file: str | None) -> None:
    """Accuracy, calibration and kept patches of a checkpoint, graph or engine on labelled images.

    torchrun -m dyvit_deploy eval ... spreads the images over processes.
    """
    from ..evaluation.evaluate import evaluate_artifact

    files = hashed(json_file, artifact)
    report = evaluate_artifact(artifact, data, config, load, show_progress)
    finish(report, json_file, files, report.skipped)


@click.command()
@click.argument("reference")
@click.argument("candidate", required=False)
@click.option("--against", metavar="timm:NAME|FILE.npz",
              help="In place of CANDIDATE: compare the checkpoint with timm, or with images and logits made elsewhere.")
@click.option("--data", help="An image folder or digits; without it noise, which proves less.")
@ConfigOptions(CheckConfig, "config")
@run_options
@json_option
def check(reference: str, candidate: str | None, against: str | None, data: str | None, config: CheckConfig,
          load: LoadConfig, json_file: str | None) -> None:
    """Compare two artifacts, or a checkpoint with other code; exit 1 when they disagree."""
    from ..parity.against import check_against, compared_files
    from ..parity.compare import check_artifacts

    if candidate and not against:
        files = hashed(json_file, reference, candidate)
        report = check_artifacts(reference, candidate, data, config, load, show_progress)
    elif against and not candidate:
        files = hashed(json_file, *compared_files(reference, against))
        report = check_against(reference, against, data, config, load, show_progress)
    else:
        raise ConfigError("Give either a CANDIDATE to compare with, or --against timm:NAME or FILE.npz.")
    finish(report, json_file, files, report.skipped, report.advice)


@click.command()
@click.argument("artifacts", nargs=-1, required=True)
@ConfigOptions(BenchConfig, "config")
@ConfigOptions(LoadConfig, "load")
@json_option
def bench(artifacts: tuple[str, ...], config: BenchConfig, load: LoadConfig, json_file: str | None) -> None:
    """Time artifacts against the dense backbone, in one run."""
    from ..deploy.dense import benchmark

    files = hashed(json_file, *artifacts, config.baseline)
    report = benchmark(artifacts, config, load, show_progress)
    show(report, json_file, files=files)
    note(*report.notes)


@click.command()
@click.argument("before")
@click.argument("after")
@json_option
def compare(before: str, after: str, json_file: str | None) -> None:
    """Compare two reports of dyvit bench --json: what became faster, what slower; exit 0 either way."""
    from ..bench.compare import compare_runs

    report = compare_runs(before, after)
    show(report, json_file)
    note(*report.notes)


def read_targets(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[Target, ...]:
    """Refuses a budget that names no metric, before the work."""
    return parse_targets(value)


@click.command()
@click.argument("checkpoint", required=False)
@click.option("-o", "--out", default="sweep", show_default=True, help="Folder for artifacts, results and charts.")
@ConfigOptions(SweepConfig, "given", without=("ranges",), make=dict)
@click.option("--target", "targets", multiple=True, metavar="METRIC<=NUMBER", callback=read_targets,
              help="Name the best artifact for a budget: latency_ms_p99<=20, top1>=97%.")
@ConfigOptions(LoadConfig, "load", without=("ratio", "ratios", "counts", "engine", "precision"))
@json_option
def sweep(checkpoint: str | None, out: str, given: dict[str, Any], load: LoadConfig, targets: tuple[Target, ...],
          json_file: str | None) -> None:
    """Measure keep ratios x precisions x backends x batch sizes, and name the best for a --target.

    Results in the folder are not measured again, and omitted options keep their last values: run it again to resume,
    or with --target alone to read a complete folder. The checkpoint may be omitted where one was swept.
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
