"""The commands of production: predict and serve."""
from __future__ import annotations

import sys

import click

from ..config import LoadConfig
from ..data.images import no_track
from ..errors import ConfigError
from ..predict.config import PredictConfig
from ..serving.config import ServeConfig
from .options import ConfigOptions, json_option, run_options
from .progress import show_progress
from .terminal import failed_notes, finish, kept_when_stopped, note, show, show_lines


@click.command()
@click.argument("repository")
@click.option("--check", is_flag=True, help="Send images every way, compare with the local runner, and stop.")
@ConfigOptions(ServeConfig, "config")
@json_option
def serve(repository: str, check: bool, config: ServeConfig, json_file: str | None) -> None:
    """Start Triton on a repository, for this machine only, or --check what it answers; exit 1 when that is wrong."""
    from ..serving.check import check_serving, serve_repository

    if not check and json_file:
        raise ConfigError("--json writes the report of --check; add it, or leave --json out.")
    if not check:
        return serve_repository(repository, config, note)
    report = check_serving(repository, config, show_progress)
    finish(report, json_file)


@click.command()
@click.argument("artifact")
@click.argument("sources", nargs=-1, required=True, metavar="IMAGES...")
@ConfigOptions(PredictConfig, "config")
@run_options
@json_option
def predict(artifact: str, sources: tuple[str, ...], config: PredictConfig, load: LoadConfig,
            json_file: str | None) -> None:
    """Predict the classes of any number of images: files, folders, .tar shards, wds/FOLDER; labels are not needed.

    After Ctrl-C or a crash, the same command resumes from FILE.partial, and includes images that were added. A finished
    FILE is overwritten. An image that cannot be read is a row with its error: exit 1 only when every image is.
    """
    from ..predict.report import RowText
    from ..predict.run import predict_images

    config.check_apart(json_file)
    text = RowText(config.top)
    watch = None if config.files else lambda rows: show_lines(text.lines(rows))
    with kept_when_stopped(config.partial):
        report = predict_images(artifact, sources, config, load, show_progress if config.files else no_track, watch)
    show(report, json_file, beside=not config.files)
    failed_notes(report.failed, report.failures)
    note(*report.notes)
    sys.exit(not report)
