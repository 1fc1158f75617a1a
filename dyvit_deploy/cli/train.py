"""The commands of training: train and eval. """
from __future__ import annotations

import shlex
from typing import Any

import click

from .options import device_option, json_option, keep_options, train_options
from .terminal import note, show, skipped_notes, typed_command


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
    from ..training.command import train as run
    from ..training.plan import TrainConfig
    from .progress import TrainingBar

    with TrainingBar(options["out"]) as bar:
        report = run(TrainConfig(**options, command=typed_command()), watch=bar.update)
    show(report, json_file)
    skipped_notes(report.skipped)
    if report.choice:
        note(f"Next: dyvit export {shlex.quote(report.choice)} --format onnx -o model.onnx")
