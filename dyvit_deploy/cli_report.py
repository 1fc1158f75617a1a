"""The commands that show what is pruned. `cli.py` puts them into `dyvit`."""
from __future__ import annotations

from typing import Any

import click

from .config import LoadConfig
from .options import device_option, json_option, run_options
from .terminal import note, progress, show, skipped_notes


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="ARTIFACT [ARTIFACT] [IMAGES...]")
@click.option("-o", "--out", default="masks", show_default=True, help="Folder for the figures.")
@click.option("--data", help="A data set in the place of files: digits, wds/PATH or hfds/NAME.")
@click.option("--split", default="test", show_default=True, help="Of the data set: train, val or test.")
@click.option("--images", type=int, help="At most this many, evenly spread; default: all files, 64 of a data set.")
@click.option("--style", default="fade", show_default=True, metavar="[fade|outline|scores]",
              help="How dropped patches look; scores colours the kept ones, of checkpoints.")
@click.option("--format", "file_format", metavar="[png|svg|gif|webp]", help="Default: png, with --animate gif.")
@click.option("--animate", is_flag=True, help="Let patches fade out stage by stage, as .gif or .webp.")
@click.option("--heatmap", is_flag=True, help="Draw one figure: how often each patch is kept, over all images.")
@click.option("--diff", is_flag=True, help="Take two artifacts; draw the images of which they keep different patches.")
@click.option("--batch", type=int, default=32, show_default=True, help="Images per run.")
@run_options
@device_option
@json_option
def visualize(paths: tuple[str, ...], out: str, file_format: str | None, animate: bool, load: LoadConfig,
              json_file: str | None, **options: Any) -> None:
    """Draw what an artifact keeps of images after each stage, with what it takes them for.

    IMAGES are files, folders, .tar shards or wds/FOLDER, shown as the model gets them, resized and cropped.
    """
    from .report.request import ANIMATIONS, VisualizeConfig
    from .report.visualize import visualize as run

    artifacts = 1 + options["diff"]
    config = VisualizeConfig(format=file_format or (ANIMATIONS[0] if animate else "png"), **options)
    config.check_animated(animate)
    report = run(paths[:artifacts], paths[artifacts:], out, config, load, progress)
    show(report, json_file)
    skipped_notes(report.skipped)
    note(*report.notes)
