"""The commands of training: train and eval. `cli.py` puts them into `dyvit`."""
from __future__ import annotations

import shlex
import sys
from typing import Any

import click

from .config import LoadConfig
from .options import device_option, json_option, keep_options, run_options, train_options
from .terminal import fail_notes, hashed, note, progress, show, skipped_notes, typed_command


@click.command(options_metavar="[OPTIONS] [RECIPE VALUES]")
@click.option("--model", required=True, help="A zoo name (dyvit models) or timm:NAME.")
@click.option("--data", required=True, help="digits, wds/PATH, hfds/NAME, or a folder with train/ and val/, one "
              "subfolder per class.")
@click.option("-o", "--out", default="run", show_default=True, help="Folder for checkpoints and logs.")
@keep_options
@device_option
@json_option
@train_options
def train(json_file: str | None, **options: Any) -> None:
    """Train a pruned student and its dense teacher; torchrun spreads it over GPUs and machines.

    Ctrl-C and SIGTERM save; --resume goes on. The last options, from --epochs on, override single values of the recipe.
    """
    from .progress import TrainingBar
    from .training.command import train as run
    from .training.plan import TrainConfig

    with TrainingBar(options["out"]) as bar:
        report = run(TrainConfig(**options, command=typed_command()), watch=bar.update)
    show(report, json_file)
    skipped_notes(report.skipped)
    if report.choice:
        note(f"Next: dyvit export {shlex.quote(report.choice)} --format onnx -o model.onnx")


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
    from .evaluation.evaluate import EvalConfig, evaluate_artifact

    files = hashed(json_file, artifact)
    report = evaluate_artifact(artifact, data, EvalConfig(split, images, batch, device), load, progress)
    show(report, json_file, files=files)
    skipped_notes(report.skipped)
    note(*report.notes)
    fail_notes(report.failures)
    sys.exit(not report)
