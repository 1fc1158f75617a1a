"""The command line: parses, makes one library call, prints, exits."""
from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from .artifacts import check_target, own_version, write_json
from .config import ExportConfig, KeepRequest, LoadConfig
from .errors import ConfigError, DyvitError, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])
FORMATS = ("onnx",)


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic in recent click only
    """Comma-separated numbers: `3,6,9`."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind
        self.name = f"{kind.__name__},..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers like 1,2,3.", param, ctx)


class ImageSize(click.ParamType):  # type: ignore[type-arg]  # generic in recent click only
    """`384`, or `384x512` for height by width."""

    name = "pixels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        parts = value.lower().split("x") if isinstance(value, str) else value
        if 1 <= len(parts) <= 2 and all(str(part).isdigit() and int(part) > 0 for part in parts):
            return int(parts[0]), int(parts[-1])
        self.fail(f"{value!r} is not a size like 384 or 384x512.", param, ctx)


class Commands(click.Group):
    """Turns known errors into one sentence and an exit code, for every command."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DyvitError as error:
            click.echo(f"dyvit: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(130)
        except MemoryError:
            click.echo("dyvit: Not enough memory; use a smaller --batch or --images.", err=True)
            ctx.exit(1)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"No command {args[0]!r}.{did_you_mean(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


def keep_options(command: F) -> F:
    """The pruning schedule; the command receives one `keep`."""
    @functools.wraps(command)
    def gather(keep_ratio: float | None, keep_ratios: Any, keep_counts: Any, stages: Any, **values: Any) -> Any:
        return command(keep=KeepRequest(keep_ratio, keep_ratios, keep_counts, stages), **values)

    decorated: F = with_options(
        gather,
        click.option("--keep-ratio", type=float, help="Stages keep RATIO, RATIO**2, ... of the patches; 1.0 is dense."),
        click.option("--keep-ratios", type=Numbers(float), help="Per stage, of the initial patches: 0.8,0.6,0.5."),
        click.option("--keep-counts", type=Numbers(int), help="Per stage, patches: 137,96,67."),
        click.option("--stages", type=Numbers(int), help="Blocks before which patches are dropped: 3,6,9."),
    )
    return decorated


def load_options(command: F) -> F:
    """How a checkpoint is opened; the command receives one `load`."""
    @functools.wraps(command)
    def gather(model: str | None, weights: str, image_size: Any, keep: KeepRequest, **values: Any) -> Any:
        return command(load=LoadConfig(model, weights, image_size, keep), **values)

    decorated: F = with_options(
        keep_options(gather),
        click.option("--model", help="Architecture, when the checkpoint does not tell: a zoo name or timm:NAME."),
        click.option("--weights", default="auto", metavar="[auto|model|ema]", help="Weights of a published file."),
        click.option("--image-size", type=ImageSize(), help="Another input size, positions interpolated."),
    )
    return decorated


def with_options(command: Any, *options: Callable[[Any], Any]) -> Any:
    """`command` with click options, shown in this order."""
    for option in reversed(options):
        command = option(command)
    return command




def writable(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuses a --json file that could not be written before the work, not after it."""
    return value and str(check_target(value))


json_option = click.option("--json", "json_file", callback=writable, help="Also write the report to this file.")
device_option = click.option("--device", metavar="[cpu|cuda]", help="Default: CUDA where it works, else the CPU.")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(own_version(), prog_name="dyvit")
def main() -> None:
    """DynamicViT from checkpoint to production: train, export, check, bench."""


@main.command()
@click.option("-o", "--out", default="dyvit-quickstart", show_default=True, help="Folder for the results.")
@json_option
def quickstart(out: str, json_file: str | None) -> None:
    """Run the main job on the shipped demo checkpoint."""
    from .quickstart import run_quickstart

    report = run_quickstart(out, say=note, track=progress)
    show(report, json_file)
    for check in report.checks:
        fail_notes(check.failures)
    note(f"\nEverything is in {out}/. Next: dyvit inspect {out}/digits-s.onnx, or your own checkpoint:\n"
         "dyvit export YOUR.pth --format onnx --keep-ratio 0.7 -o model.onnx")
    sys.exit(not report)


@main.command()
@click.argument("names", nargs=-1)
@json_option
def models(names: tuple[str, ...], json_file: str | None) -> None:
    """List the zoo, or NAMES (timm:NAME works too)."""
    from .catalog import list_models

    show(list_models(names, track=progress), json_file)


@main.command()
@click.option("--model", required=True, help="A zoo name (dyvit models) or timm:NAME.")
@click.option("--data", required=True, help="digits, or a folder with train/ and val/, one subfolder per class.")
@click.option("-o", "--out", required=True, help="Folder for best.safetensors and last.safetensors.")
@click.option("--backbone", help="Checkpoint of the dense teacher; without it one is trained first.")
@click.option("--epochs", type=int, help="Epochs of the student (or of the dense model at --keep-ratio 1.0).")
@click.option("--dense-epochs", type=int, help="Epochs of the dense teacher.")
@click.option("--batch", type=int, help="Images per step.")
@click.option("--lr", type=float, help="Peak learning rate.")
@click.option("--images", type=int, help="Images per epoch.")
@click.option("--seed", type=int, help="Of weights, data order and sampled tokens.")
@click.option("--bf16/--no-bf16", default=None, help="Matrix products in bfloat16 (default) or float32.")
@click.option("--resume", is_flag=True, help="Go on from last.safetensors.")
@keep_options
@device_option
@json_option
def train(json_file: str | None, keep: KeepRequest, **options: Any) -> None:
    """Train a pruned student and its dense teacher.

    Ctrl-C loses at most the running epoch; --resume goes on.
    """
    from .progress import TrainingBar
    from .training.loop import RECIPE_OPTIONS, TrainConfig, train as run

    given = tuple((name, value) for name in RECIPE_OPTIONS if (value := options.pop(name)) is not None)
    with TrainingBar(options["out"]) as bar:
        report = run(TrainConfig(keep=keep, overrides=given, **options), watch=bar.update)
    show(report, json_file)
    skipped_notes(report.skipped)
    note(f"Next: dyvit export {report.best} --format onnx -o model.onnx")


@main.command("eval")
@click.argument("artifact")
@click.option("--data", required=True, help="digits, or a folder with one subfolder per class.")
@click.option("--split", default="test", show_default=True, help="train, val or test.")
@click.option("--images", type=int, help="At most this many.")
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Images per run.")
@load_options
@device_option
@json_option
def evaluate(artifact: str, data: str, split: str, images: int | None, batch: int, load: LoadConfig,
             device: str | None, json_file: str | None) -> None:
    """Top-1 of a checkpoint or ONNX file on labelled images."""
    from .runners.evaluate import EvalConfig, evaluate_artifact

    report = evaluate_artifact(artifact, data, EvalConfig(split, images, batch, device), load, progress)
    show(report, json_file)
    skipped_notes(report.skipped)


@main.command()
@click.argument("checkpoint")
@click.option("--format", "target", default="onnx", show_default=True, metavar="[onnx]", help="What to write.")
@click.option("-o", "--out", required=True, help="File to write.")
@click.option("--with-tokens", is_flag=True, help="Also output the kept patches of each stage.")
@click.option("--input", "input_type", default="float32", show_default=True, metavar="[float32|uint8]",
              help="uint8 takes raw RGB [batch, height, width, 3] and normalises inside the graph.")
@click.option("--allow-large-k", is_flag=True, help="Permit TopK beyond TensorRT's limit of 3840.")
@load_options
@json_option
def export(checkpoint: str, target: str, out: str, with_tokens: bool, input_type: str, allow_large_k: bool,
           load: LoadConfig, json_file: str | None) -> None:
    """Export a checkpoint with a fixed number of tokens per stage."""
    if target not in FORMATS:
        raise ConfigError(f"Unknown format {target!r}.{did_you_mean(target, FORMATS)}")
    from .export.onnx import export_onnx

    config = ExportConfig(with_tokens, input_type, allow_large_k)
    with status(f"exporting {checkpoint}"):
        report = export_onnx(checkpoint, out, config, load)
    show(report, json_file)
    note(f"Next: dyvit check {checkpoint} {out} --data YOUR_IMAGES")


@main.command()
@click.argument("reference")
@click.argument("candidate")
@click.option("--data", help="An image folder or digits; without it noise, which proves less.")
@click.option("--images", type=int, default=64, show_default=True, help="At most this many.")
@click.option("--batch", type=Numbers(int), default="1,8", show_default=True, help="Batch sizes of the candidate.")
@click.option("--tolerance", type=float, help="Largest logit error, relative to logits above 1.")
@load_options
@device_option
@json_option
def check(reference: str, candidate: str, data: str | None, images: int, batch: tuple[int, ...],
          tolerance: float | None, load: LoadConfig, device: str | None, json_file: str | None) -> None:
    """Compare two artifacts; exit 1 when they disagree."""
    from .parity import CheckConfig, Tolerance, check_artifacts

    allowed = Tolerance() if tolerance is None else Tolerance(logits=tolerance)
    report = check_artifacts(reference, candidate, data, CheckConfig(images, batch, allowed, device), load, progress)
    show(report, json_file)
    skipped_notes(report.skipped)
    for line in report.notes:
        note(line)
    fail_notes(report.failures)
    sys.exit(not report)


@main.command()
@click.argument("artifacts", nargs=-1, required=True)
@click.option("--batch", type=Numbers(int), default="1,8,32", show_default=True, help="Batch sizes.")
@click.option("--baseline", help="Compare with this artifact instead of the dense backbone.")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Time limit per batch size.")
@click.option("--threads", type=int, default=0, help="Threads of ONNX Runtime; default: all cores.")
@load_options
@device_option
@json_option
def bench(artifacts: tuple[str, ...], batch: tuple[int, ...], baseline: str | None, seconds: float, threads: int,
          load: LoadConfig, device: str | None, json_file: str | None) -> None:
    """Time artifacts against the dense backbone, in one run."""
    from .bench import BenchConfig, benchmark

    config = BenchConfig(batches=batch, seconds=seconds, baseline=baseline, device=device, threads=threads)
    report = benchmark(artifacts, config, load, progress)
    show(report, json_file)
    for line in report.notes:
        note(line)


@main.command()
@click.argument("artifact")
@json_option
def inspect(artifact: str, json_file: str | None) -> None:
    """Show what an artifact is: model, pruning, origin."""
    from .inspection import inspect_artifact

    show(inspect_artifact(artifact), json_file)


@main.command()
@json_option
def doctor(json_file: str | None) -> None:
    """Show which backends work here, and how to get the others."""
    from .doctor import diagnose

    report = diagnose()
    show(report, json_file)
    sys.exit(not report)


def show(report: Any, json_file: str | None) -> None:
    """Prints a report's table, and writes its JSON where asked."""
    from .progress import console

    console().print(report.table())
    if json_file:
        write_json(json_file, report.to_json())


def note(text: str) -> None:
    """A line for people, apart from the results."""
    click.echo(text, err=True)


def fail_notes(failures: Iterable[str]) -> None:
    for failure in failures:
        note(f"FAILED {failure}")


def skipped_notes(skipped: tuple[str, ...]) -> None:
    if skipped:
        note(f"Could not be read and were skipped, {len(skipped)} in all:")
        for line in skipped:
            note(f"  {line}")


def progress(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """A rich progress bar around `items`, on standard error."""
    from .progress import track

    return track(items, description, total)


def status(text: str) -> Any:
    """A spinner while one long call runs."""
    from .progress import errors

    return errors().status(text)


if __name__ == "__main__":
    main(prog_name=Path(sys.argv[0]).stem)
