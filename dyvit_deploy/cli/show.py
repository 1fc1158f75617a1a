"""The commands that show: what is pruned, and what is known of a set of artifacts."""
from __future__ import annotations

import sys
from typing import Any

import click

from ..config import LoadConfig
from ..report.config import ReportConfig
from ..visualization.config import ANIMATIONS, VisualizeConfig
from .options import ConfigOptions, json_option, run_options
from .progress import show_progress
from .terminal import note, show, skipped_notes


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="ARTIFACT [ARTIFACT] [IMAGES...]")
@click.option("-o", "--out", default="masks", show_default=True, help="Folder for the figures.")
@ConfigOptions(VisualizeConfig, "options", make=dict)
@click.option("--animate", is_flag=True, help="Fade dropped patches out, stage by stage, as .gif or .webp.")
@run_options
@json_option
def visualize(paths: tuple[str, ...], out: str, options: dict[str, Any], animate: bool, load: LoadConfig,
              json_file: str | None) -> None:
    """Draw what an artifact keeps of images after each stage, with what it takes them for.

    IMAGES are files, folders, .tar shards or wds/FOLDER, shown as the model gets them, resized and cropped.
    """
    from ..visualization.run import visualize as run

    config = VisualizeConfig(**({"format": ANIMATIONS[0]} if animate else {}) | options)
    config.check_animated(animate)
    artifacts = 1 + config.diff
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
@ConfigOptions(ReportConfig, "config")
@click.option("--strict", is_flag=True, help="Exit 1 when a verdict is bad.")
@json_option
def report(folder: str, out: str | None, config: ReportConfig, strict: bool, json_file: str | None) -> None:
    """Write everything known of the artifacts in FOLDER on one page: verdicts, trade-offs, galleries, origin.

    It reads the artifacts and the JSON of check, eval, bench, export, sweep and quickstart beside them (--json
    FOLDER/NAME.json), one folder deep. It describes: exit 0 whatever the verdicts are,
    without --strict.
    """
    from ..report.page import write_report

    report = write_report(folder, out, config, show_progress)
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
@ConfigOptions(LoadConfig, "load", without=("engine", "precision", "keep"))
@json_option
def inspect(artifact: str, load: LoadConfig, json_file: str | None) -> None:
    """Show what an artifact is: model, pruning, origin."""
    from ..inspect.artifact import inspect_artifact

    show(inspect_artifact(artifact, load), json_file)


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
