"""The commands from a checkpoint to an artifact: export, build, refit, calibrate, sensitivity, and quickstart."""
from __future__ import annotations

import contextlib
import shlex
import sys

import click

from ..artifacts.locks import sole_use
from ..calibration.config import CalibrationConfig
from ..calibration.targets import REPOSITORY
from ..config import LoadConfig
from ..deploy.config import DeployConfig
from ..engine.config import BuildConfig
from ..serving.config import ServingConfig
from .options import ConfigOptions, drawable, json_option, load_options, writable
from .progress import show_progress
from .terminal import check_apart, fail_notes, finish, note, show, show_plan, skipped_notes, step

# Commands that take images for calibration only call them so.
FROM_DATA = {"data": "--data", "images": "--images"}


@click.command()
@click.option("-o", "--out", default="dyvit-quickstart", show_default=True, help="Folder for the results.")
@json_option
def quickstart(out: str, json_file: str | None) -> None:
    """Run the main job on the shipped demo checkpoint."""
    from ..demo.quickstart import run_quickstart

    report = run_quickstart(out, say=note, track=show_progress)
    show(report, json_file, files=report.files)
    for check in report.checks:
        fail_notes(check.failures)
    if report.page:
        note(f"\nOpen {report.page} in a browser: all of this on one page.")
    note(f"\nEverything is in {out}/. Next: dyvit inspect {out}/digits-s.onnx, or your own checkpoint:\n"
         "dyvit export YOUR.pth --format onnx --keep-ratio 0.7 -o model.onnx")
    sys.exit(not report)


@click.command()
@click.argument("checkpoint")
@click.option("-o", "--out", required=True, help="File to write, or the repository's folder.")
@click.option("--dry-run", is_flag=True, help="Print the steps, sizes and equivalent commands; write nothing.")
@ConfigOptions(DeployConfig, "config")
@load_options
@ConfigOptions(ServingConfig, "serving")
@json_option
def export(checkpoint: str, out: str, dry_run: bool, config: DeployConfig, load: LoadConfig, serving: ServingConfig,
           json_file: str | None) -> None:
    """Export a checkpoint with a fixed number of tokens per stage, in any precision, as graph or engine.

    A lower precision is compared with float32 on real images: exit 1 and NAME.rejected.onnx when it differs too much.
    With --format triton, --keep-ratios 0.9,0.7,0.5 are models side by side, each R keeping R, R**2, ..., with a router.
    """
    from ..deploy.pipeline import export_artifact, plan_artifact
    from ..deploy.report import Progress
    from .progress import BuildBar

    check_apart(out, json_file)
    if config.format == REPOSITORY:
        return export_triton(checkpoint, out, serving, config, load, dry_run, json_file)
    serving.require_unset()
    if dry_run:
        return show_plan(plan_artifact(checkpoint, out, config, load), json_file)
    with BuildBar() as bar:
        report = export_artifact(checkpoint, out, config, load, Progress(step, show_progress, bar.update))
    finish(report, json_file, (report.path,), advice=report.advice, next_step=report.next_step(checkpoint))


@click.command("build")
@click.argument("model")
@click.option("--format", "target_format", default="trt", show_default=True, metavar="[trt|rtx]",
              help="TensorRT, or TensorRT for RTX.")
@click.option("-o", "--out", required=True, help="Plan to write.")
@click.option("--dry-run", is_flag=True, help="Print the steps, sizes and equivalent commands; write nothing.")
@ConfigOptions(BuildConfig, "build")
@json_option
def build(model: str, target_format: str, out: str, dry_run: bool, build: BuildConfig, json_file: str | None) -> None:
    """Build a TensorRT engine from an ONNX file of dyvit export, or any with one free batch dimension."""
    from ..deploy.on_device import build_artifact
    from ..deploy.report import Progress
    from ..engine.build import plan_build
    from .progress import BuildBar

    check_apart(out, json_file)
    if dry_run:
        return show_plan(plan_build(model, out, target_format, build), json_file)
    with BuildBar() as bar:
        report = build_artifact(model, out, target_format, build, Progress(step, show_progress, bar.update))
    plan = shlex.quote(report.path)
    bench = f", and on the machine with the GPU: dyvit bench {plan}" if report else ""
    finish(report, json_file, advice=report.advice, next_step=f"dyvit inspect {plan}{bench}")


@click.command()
@click.argument("plan")
@click.argument("model")
@click.option("-o", "--out", required=True, help="Plan to write.")
@click.option("--data", help="Images to compare the result on: digits, a folder; without it noise, which proves less.")
@json_option
def refit(plan: str, model: str, out: str, data: str | None, json_file: str | None) -> None:
    """Put the weights of an ONNX file into a plan; needs a GPU.

    MODEL is exported with the options of the plan, --target tensorrt and its precision included. A plan built with
    --strip-weights takes the weights of the file that it was built from, one built with --refittable those of any
    training of the model. The result is compared with the ONNX file: exit 1 and NAME.rejected.plan when
    it differs.
    """
    from ..deploy.on_device import refit_artifact
    from ..deploy.report import Progress

    check_apart(out, json_file)
    report = refit_artifact(plan, model, out, data, Progress(step, show_progress))
    finish(report, json_file, advice=report.advice)


@click.command()
@click.argument("model")
@click.option("-o", "--out", required=True, callback=writable, help="JSON file to write.")
@ConfigOptions(CalibrationConfig, "calibration", without=("ranges",), flags=FROM_DATA, required=("data",))
def calibrate(model: str, out: str, calibration: CalibrationConfig) -> None:
    """Collect the ranges of a float32 ONNX file on real images, for dyvit export --ranges."""
    from ..calibration.collect import calibrate as run

    with sole_use(out):
        ranges = run(model, calibration, show_progress)
        ranges.save(out)
    show(ranges, None)
    note(*ranges.notes)
    note(f"Next: dyvit export CHECKPOINT --int8 --ranges {out} -o model.int8.onnx")


@click.command()
@click.argument("model")
@click.option("--precision", default="int8", show_default=True, metavar="[int8|fp8|fp16|bf16]",
              help="What to lower each layer to.")
@click.option("--chart", callback=drawable, help="Also draw the costliest layers, as .png or .svg.")
@ConfigOptions(CalibrationConfig, "calibration", flags=FROM_DATA, required=("data",))
@json_option
def sensitivity(model: str, precision: str, chart: str | None, calibration: CalibrationConfig,
                json_file: str | None) -> None:
    """Show which layers of a float32 ONNX file cost accuracy, one at a time."""
    from ..calibration.sensitivity import measure_sensitivity

    with contextlib.ExitStack() as stack:
        for file in filter(None, (json_file, chart)):
            stack.enter_context(sole_use(file))
        report = measure_sensitivity(model, precision, calibration, show_progress)
        show(report, json_file)
        skipped_notes(report.skipped)
        if chart:
            report.chart(chart)
            note(f"Drawn to {chart}.")


def export_triton(checkpoint: str, out: str, serving: ServingConfig, config: DeployConfig, load: LoadConfig,
                  dry_run: bool, json_file: str | None) -> None:
    """`dyvit export --format triton`."""
    from ..deploy.report import Progress
    from ..serving.export import export_repository, plan_repository

    if dry_run:
        return show_plan(plan_repository(checkpoint, out, serving, config, load), json_file)
    report = export_repository(checkpoint, out, serving, config, load, Progress(step, show_progress))
    finish(report, json_file, advice=report.advice, next_step=report.next_step(checkpoint))
