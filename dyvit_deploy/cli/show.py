"""The commands that show: what is pruned, and what is known of a set of artifacts. """
from __future__ import annotations

import sys
from typing import Any

import click

from ..config import LoadConfig
from .options import device_option, json_option, run_options
from .terminal import note, show, show_progress, skipped_notes


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="ARTIFACT [ARTIFACT] [IMAGES...]")
@click.option("-o", "--out", default="masks", show_default=True, help="Folder for the figures.")
@click.option("--data", help="A data set in the place of files: digits, wds/PATH or hfds/NAME.")
@click.option("--split", default="test", show_default=True, help="Part of the data set: train, val or test.")
@click.option("--images", type=int,
              help="At most this many, of files evenly spread; default: all files, 64 of a data set.")
@click.option("--style", default="fade", show_default=True, metavar="[fade|outline|scores]",
              help="How patches look; scores, which only checkpoints tell, colours those that are kept.")
@click.option("--format", "file_format", metavar="[png|svg|gif|webp]",
              help="gif and webp move; default: png, with --animate gif.")
@click.option("--animate", is_flag=True, help="Fade dropped patches out, stage by stage, as .gif or .webp.")
@click.option("--heatmap", is_flag=True, help="Draw how often each patch is kept, over all images.")
@click.option("--diff", is_flag=True, help="Draw the images of which two artifacts keep different patches.")
@click.option("--batch", type=int, default=32, show_default=True, help="Images per run.")
@run_options
@device_option
@json_option
def visualize(paths: tuple[str, ...], out: str, file_format: str | None, animate: bool, load: LoadConfig,
              json_file: str | None, **options: Any) -> None:
    """Draw what an artifact keeps of images after each stage, with what it takes them for.

    IMAGES are files, folders, .tar shards or wds/FOLDER, shown as the model gets them, resized and cropped.
    """
    from ..visualization.config import ANIMATIONS, VisualizeConfig
    from ..visualization.run import visualize as run

    artifacts = 1 + options["diff"]
    config = VisualizeConfig(format=file_format or (ANIMATIONS[0] if animate else "png"), **options)
    config.check_animated(animate)
    try:
        report = run(paths[:artifacts], paths[artifacts:], out, config, load, show_progress)
    except KeyboardInterrupt:
        note(f"Stopped; {out} has the figures that were done, each of them whole.")
        raise
    show(report, json_file, files=paths[:artifacts])
    skipped_notes(report.skipped)
    note(*report.notes)


@click.command("report")
@click.argument("folder")
@click.option("-o", "--out", metavar="FILE", help="HTML file to write; default: report.html in FOLDER.")
@click.option("--data", help="Images for the galleries: a folder, or digits; default: digits for models of them.")
@click.option("--images", type=int, default=10, show_default=True, help="At most this many, 100 or fewer; 0: none.")
@click.option("--max-drop", type=float, default=1.0, show_default=True, metavar="POINTS",
              help="Points of top-1 that an artifact may lose against its checkpoint and the dense model.")
@click.option("--no-run", is_flag=True, help="Run no artifact: no galleries.")
@click.option("--strict", is_flag=True, help="Exit 1 when a verdict is bad.")
@json_option
def report(folder: str, out: str | None, json_file: str | None, no_run: bool, strict: bool,
                **options: Any) -> None:
    """Write everything known of the artifacts in FOLDER on one page: verdicts, trade-offs, galleries, origin.

    It reads the artifacts and the JSON of check, eval, bench, export, sweep and quickstart beside them (--json
    FOLDER/NAME.json), one folder deep. It describes: exit 0 whatever the verdicts are,
    without --strict.
    """
    from ..report.page import ReportConfig, write_report

    report = write_report(folder, out, ReportConfig(run=not no_run, **options), show_progress)
    show(report, json_file)
    note(*report.notes)
    note(*(f"do not ship: {failure}" for failure in report.failures))
    note(f"Open {report.path} in a browser; it is one file and needs no network.")
    sys.exit(strict and not report)


@click.command()
@click.argument("names", nargs=-1)
@json_option
def models(names: tuple[str, ...], json_file: str | None) -> None:
    """List the zoo, or NAMES (timm:NAME works too)."""
    from ..model.catalog import list_models

    show(list_models(names, track=show_progress), json_file)


@click.command()
@click.argument("artifact")
@json_option
def inspect(artifact: str, json_file: str | None) -> None:
    """Show what an artifact is: model, pruning, origin."""
    from ..inspect.artifact import inspect_artifact

    show(inspect_artifact(artifact), json_file)


@click.command()
@click.option("--target", metavar="PLAN", help="Will this engine load here? If not, what differs.")
@json_option
def doctor(target: str | None, json_file: str | None) -> None:
    """Show which backends work here, and how to get the others."""
    from ..engine.preflight import preflight
    from ..inspect.doctor import diagnose

    if target:
        found = preflight(target)
        show(found, json_file)
        note(*found.notes, *([found.advice] if found.advice else []))
        sys.exit(not found)
    report = diagnose()
    show(report, json_file)
    sys.exit(not report)
