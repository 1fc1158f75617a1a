"""The commands of production: predict, serve, and export to a Triton repository. """
from __future__ import annotations

import sys
from typing import Any

import click

from ..config import LoadConfig
from ..data.images import no_track
from ..errors import ConfigError
from .options import device_option, json_option, run_options
from .terminal import fail_notes, failed_notes, kept_when_stopped, note, show, show_lines, show_progress


@click.command()
@click.argument("repository")
@click.option("--check", is_flag=True, help="Send images every way, compare with the local runner, and stop.")
@click.option("--data", default="digits", show_default=True, help="Images to send: a folder, or digits.")
@click.option("--images", type=click.IntRange(min=1), default=32, show_default=True, help="At most this many.")
@click.option("--triton", help="A tritonserver, or a virtual environment with nvidia-pytriton; default: that of "
              "DYVIT_TRITON, or one that is installed.")
@click.option("--port", type=int, help="First of three ports: HTTP, gRPC, metrics; default: 8000, with --check any.")
@click.option("--url", metavar="HOST:PORT", help="Check a server that runs already, at its HTTP port.")
@json_option
def serve(repository: str, check: bool, data: str, images: int, triton: str | None, port: int | None, url: str | None,
          json_file: str | None) -> None:
    """Start Triton on a repository, for this machine only, or --check what it answers; exit 1 when that is wrong."""
    from ..serving.check import ServeConfig, check_serving, serve_repository

    config = ServeConfig(data, images, url, triton, port)
    if not check and json_file:
        raise ConfigError("--json writes the report of --check; add it, or leave --json out.")
    if not check:
        return serve_repository(repository, config, note)
    report = check_serving(repository, config, show_progress)
    show(report, json_file)
    note(*report.notes)
    fail_notes(report.failures)
    sys.exit(not report)


@click.command()
@click.argument("artifact")
@click.argument("sources", nargs=-1, required=True, metavar="IMAGES...")
@click.option("--top", type=int, default=5, show_default=True, help="Likeliest classes per image.")
@click.option("--csv", metavar="FILE", help="Write the rows to this .csv file, instead of showing them.")
@click.option("--parquet", metavar="FILE", help="Write them to this .parquet file; both may be given.")
@click.option("--batch", type=int, default=32, show_default=True, help="Images per run.")
@click.option("--runner", default="local", show_default=True, metavar="[local|ray]",
              help="ray: processes of this machine, or of the cluster in RAY_ADDRESS.")
@click.option("--workers", type=int, help="Processes of --runner ray; default: one per GPU, else per machine.")
@run_options
@device_option
@json_option
def predict(artifact: str, sources: tuple[str, ...], load: LoadConfig, json_file: str | None, **options: Any) -> None:
    """Predict the classes of any number of images: files, folders, .tar shards, wds/FOLDER; labels are not needed.

    Stopped by Ctrl-C or a crash, the same command goes on from FILE.partial, and predicts images that were added, too.
    A finished FILE is written over. What cannot be read is a row with its error: exit 1 only when that is every image.
    """
    from ..predict.report import PredictConfig, RowText
    from ..predict.run import predict_images

    config, text = PredictConfig(**options), RowText(options["top"])
    config.check_apart(json_file)
    watch = None if config.files else lambda rows: show_lines(text.lines(rows))
    with kept_when_stopped(config.partial):
        report = predict_images(artifact, sources, config, load, show_progress if config.files else no_track, watch)
    show(report, json_file, beside=not config.files)
    failed_notes(report.failed, report.failures)
    note(*report.notes)
    sys.exit(not report)
