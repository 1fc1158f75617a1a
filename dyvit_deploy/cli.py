"""The command line: parses, makes one library call, prints, exits."""
from __future__ import annotations

import errno
import shlex
import sys
from typing import Any

import click

from .artifacts.facts import own_version
from .calibration.config import CalibrationConfig, PrecisionConfig
from .calibration.targets import FORMATS, REPOSITORY
from .cli_production import export_triton, predict, serve
from .cli_report import report_page, visualize
from .cli_training import evaluate, train
from .config import LoadConfig
from .deploy.config import DeployConfig
from .engine.config import BuildConfig
from .errors import DyvitError, did_you_mean
from .export.config import ExportConfig
from .options import (
    Numbers,
    build_options,
    calibration_options,
    device_option,
    drawable,
    graph_options,
    json_option,
    load_options,
    precision_options,
    run_options,
    serving_options,
    sweep_options,
    writable,
)
from .serving.config import ServingConfig
from .sweep.target import Target
from .terminal import (
    TYPED,
    check_apart,
    complain,
    fail_notes,
    hashed,
    note,
    progress,
    show,
    show_lines,
    show_plan,
    skipped_notes,
    step,
)


class Commands(click.Group):
    """Turns known errors into one sentence and an exit code, for every command."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DyvitError as error:
            complain(str(error))
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            complain("interrupted")
            ctx.exit(130)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            complain(f"The disk is full ({error.filename or 'temporary files'}); free space, or set TMPDIR to a folder "
                     "on another disk.")
            ctx.exit(1)
        except MemoryError:
            complain("Not enough memory; use a smaller --batch or --images.")
            ctx.exit(1)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[TYPED] = shlex.join(["dyvit", *args])                     # before click takes the list apart
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"No command {args[0]!r}.{did_you_mean(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(own_version(), prog_name="dyvit")
def main() -> None:
    """DynamicViT from checkpoint to production: train, export, check, bench."""


for command in (train, evaluate, predict, serve, visualize, report_page):
    main.add_command(command)


@main.command()
@click.option("-o", "--out", default="dyvit-quickstart", show_default=True, help="Folder for the results.")
@json_option
def quickstart(out: str, json_file: str | None) -> None:
    """Run the main job on the shipped demo checkpoint."""
    from .demo.quickstart import run_quickstart

    report = run_quickstart(out, say=note, track=progress)
    show(report, json_file, files=report.files)
    for check in report.checks:
        fail_notes(check.failures)
    if report.page:
        note(f"\nOpen {report.page} in a browser: all of this on one page.")
    note(f"\nEverything is in {out}/. Next: dyvit inspect {out}/digits-s.onnx, or your own checkpoint:\n"
         "dyvit export YOUR.pth --format onnx --keep-ratio 0.7 -o model.onnx")
    sys.exit(not report)


@main.command()
@click.argument("names", nargs=-1)
@json_option
def models(names: tuple[str, ...], json_file: str | None) -> None:
    """List the zoo, or NAMES (timm:NAME works too)."""
    from .model.catalog import list_models

    show(list_models(names, track=progress), json_file)


@main.command()
@click.argument("checkpoint")
@click.option("--format", "target_format", default="onnx", show_default=True,
              metavar=f"[{'|'.join((*FORMATS, REPOSITORY))}]", help="What to write; triton is a model repository.")
@click.option("-o", "--out", required=True, help="File to write, or the repository's folder.")
@graph_options
@click.option("--dry-run", is_flag=True, help="Print the steps, sizes and equivalent commands; write nothing.")
@precision_options
@build_options
@load_options
@serving_options
@json_option
def export(checkpoint: str, target_format: str, out: str, graph: ExportConfig, dry_run: bool,
           precision: PrecisionConfig, calibration: CalibrationConfig, build: BuildConfig, load: LoadConfig,
           serving: ServingConfig, json_file: str | None) -> None:
    """Export a checkpoint with a fixed number of tokens per stage, in any precision, as graph or engine.

    A lower precision is compared with float32 on real images: exit 1 and NAME.rejected.onnx when it differs too much.
    With --format triton, --keep-ratios 0.9,0.7,0.5 are models side by side, each R keeping R, R**2, ..., with a router.
    """
    from .deploy.pipeline import export_artifact, plan_artifact
    from .deploy.report import Progress
    from .progress import BuildBar

    config = DeployConfig(target_format, graph, precision, calibration, build)
    check_apart(out, json_file)
    if target_format == REPOSITORY:
        return export_triton(checkpoint, out, serving, config, load, dry_run, json_file)
    serving.require_unset()
    if dry_run:
        return show_plan(plan_artifact(checkpoint, out, config, load), json_file)
    with BuildBar() as bar:
        report = export_artifact(checkpoint, out, config, load, Progress(step, progress, bar.update))
    show(report, json_file, files=(report.path,))
    note(*report.notes)
    fail_notes(report.failures, report.advice)
    note(f"Next: {report.next_step(checkpoint)}")
    sys.exit(not report)


@main.command("build")
@click.argument("model")
@click.option("--format", "target_format", default="trt", show_default=True, metavar="[trt|rtx]",
              help="TensorRT, or TensorRT for RTX.")
@click.option("-o", "--out", required=True, help="Plan to write.")
@click.option("--dry-run", is_flag=True, help="Print the steps, sizes and equivalent commands; write nothing.")
@build_options
@json_option
def build_command(model: str, target_format: str, out: str, dry_run: bool, build: BuildConfig,
                  json_file: str | None) -> None:
    """Build a TensorRT engine of an ONNX file, ours or any with one free batch dimension."""
    from .deploy.on_device import build_artifact
    from .deploy.report import Progress
    from .engine.build import plan_build
    from .progress import BuildBar

    check_apart(out, json_file)
    if dry_run:
        return show_plan(plan_build(model, out, target_format, build), json_file)
    with BuildBar() as bar:
        report = build_artifact(model, out, target_format, build, Progress(step, progress, bar.update))
    show(report, json_file)
    note(*report.notes)
    fail_notes(report.failures, report.advice)
    plan = shlex.quote(report.path)
    note(f"Next: dyvit inspect {plan}" + (f", and on the machine with the GPU: dyvit bench {plan}" if report else ""))
    sys.exit(not report)


@main.command()
@click.argument("plan")
@click.argument("model")
@click.option("-o", "--out", required=True, help="Plan to write.")
@click.option("--data", help="Images to compare the result on: digits, a folder; without it noise, which proves less.")
@json_option
def refit(plan: str, model: str, out: str, data: str | None, json_file: str | None) -> None:
    """Put the weights of an ONNX file into a plan; needs a GPU.

    MODEL is exported with the options of the plan, --target tensorrt and its precision included. A plan built with
    --strip-weights takes the weights of the file that it was built of, one built with --refittable those of any
    training of the model. The result is compared with the ONNX file: exit 1 and NAME.rejected.plan when
    it differs.
    """
    from .deploy.on_device import refit_artifact
    from .deploy.report import Progress

    check_apart(out, json_file)
    report = refit_artifact(plan, model, out, data, Progress(step, progress))
    show(report, json_file)
    note(*report.notes)
    fail_notes(report.failures, report.advice)
    sys.exit(not report)


@main.command()
@click.argument("model")
@click.option("-o", "--out", required=True, callback=writable, help="JSON file to write.")
@calibration_options("--data", required=True, reusable=False)
def calibrate(model: str, out: str, calibration: CalibrationConfig) -> None:
    """Collect the ranges of a float32 ONNX file on real images, for dyvit export --ranges."""
    from .calibration.collect import calibrate as run

    ranges = run(model, calibration, progress)
    ranges.save(out)
    show(ranges, None)
    note(*ranges.notes)
    note(f"Next: dyvit export CHECKPOINT --int8 --ranges {out} -o model.int8.onnx")


@main.command()
@click.argument("model")
@click.option("--precision", default="int8", show_default=True, metavar="[int8|fp8|fp16|bf16]",
              help="What to lower each layer to.")
@click.option("--chart", callback=drawable, help="Also draw the costliest layers, as .png or .svg.")
@calibration_options("--data", required=True)
@json_option
def sensitivity(model: str, precision: str, chart: str | None, calibration: CalibrationConfig,
                json_file: str | None) -> None:
    """Show which layers of a float32 ONNX file cost accuracy, one at a time."""
    from .calibration.sensitivity import measure_sensitivity

    report = measure_sensitivity(model, precision, calibration, progress)
    show(report, json_file)
    skipped_notes(report.skipped)
    if chart:
        report.chart(chart)
        note(f"Drawn to {chart}.")


@main.command()
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
    from .parity.compare import CheckConfig, check_artifacts

    config, files = CheckConfig(images, batch, error=tolerance, device=device), hashed(json_file, reference, candidate)
    report = check_artifacts(reference, candidate, data, config, load, progress)
    show(report, json_file, files=files)
    skipped_notes(report.skipped)
    note(*report.notes)
    fail_notes(report.failures)
    sys.exit(not report)


@main.command()
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
    from .bench.report import BenchConfig
    from .deploy.dense import benchmark

    config = BenchConfig(batches=batches, seconds=seconds, stable=stable, baseline=baseline, device=device,
                         threads=threads, cpus=cpus, peak=peak, profile=profile, transfers=transfers)
    files = hashed(json_file, *artifacts, baseline)
    report = benchmark(artifacts, config, load, progress)
    show(report, json_file, files=files)
    note(*report.notes)


@main.command()
@click.argument("before")
@click.argument("after")
@json_option
def compare(before: str, after: str, json_file: str | None) -> None:
    """Compare two reports of dyvit bench --json: what became faster, what slower. It judges nothing: exit 0."""
    from .bench.compare import compare_runs

    report = compare_runs(before, after)
    show(report, json_file)
    note(*report.notes)


@main.command()
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
    from .deploy.report import Progress
    from .progress import BuildBar
    from .sweep.run import run_sweep
    from .sweep.store import recall

    with BuildBar() as bar:
        report = run_sweep(checkpoint, out, recall(out, given), load, Progress(step, progress, bar.update))
    report = report.aimed_at(targets)
    show(report, json_file, files=[row.artifact for row in report.rows])
    note(*report.left_out(), *report.notes, f"Artifacts, results and charts are in {out}/.")
    fail_notes(report.failures)
    show_lines(report.advice)
    sys.exit(not report)


@main.command()
@click.argument("artifact")
@json_option
def inspect(artifact: str, json_file: str | None) -> None:
    """Show what an artifact is: model, pruning, origin."""
    from .inspect.artifact import inspect_artifact

    show(inspect_artifact(artifact), json_file)


@main.command()
@click.option("--target", metavar="PLAN", help="Will this engine load here? If not, what differs.")
@json_option
def doctor(target: str | None, json_file: str | None) -> None:
    """Show which backends work here, and how to get the others."""
    from .engine.preflight import preflight
    from .inspect.doctor import diagnose

    if target:
        found = preflight(target)
        show(found, json_file)
        note(*found.notes, *([found.advice] if found.advice else []))
        sys.exit(not found)
    report = diagnose()
    show(report, json_file)
    sys.exit(not report)
