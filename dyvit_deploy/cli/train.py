"""The command that trains."""
from __future__ import annotations

import dataclasses
import shlex
from typing import Any

import click

from ..training.plan import TrainConfig
from .options import ConfigOptions, json_option, recipe_options
from .terminal import note, show, skipped_notes, typed_command


@click.command(options_metavar="[OPTIONS] [RECIPE VALUES]")
@ConfigOptions(TrainConfig, "config", without=("fuse", "align"))
@json_option
@recipe_options
def train(config: TrainConfig, overrides: tuple[tuple[str, Any], ...], json_file: str | None) -> None:
    """Train a pruned student and its dense teacher; torchrun spreads it over GPUs and machines.

    Ctrl-C and SIGTERM save, --resume continues. Options from --epochs on override single values of the recipe.
    """
    from ..training.command import train as run
    from .progress import TrainingBar

    with TrainingBar(str(config.out)) as bar:
        report = run(dataclasses.replace(config, overrides=overrides, command=typed_command()), watch=bar.update)
    show(report, json_file)
    skipped_notes(report.skipped)
    if report.choice:
        note(f"Next: dyvit export {shlex.quote(report.choice)} --format onnx -o model.onnx")
