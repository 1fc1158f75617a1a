"""Commands that bring artifacts into services."""
from __future__ import annotations

import sys

import click

from .config import LoadConfig
from .deploy_config import DeployConfig, ServingConfig
from .options import json_option
from .terminal import fail_notes, note, progress, show, show_plan, step


def export_triton(checkpoint: str, out: str, serving: ServingConfig, config: DeployConfig, load: LoadConfig,
                  dry_run: bool, json_file: str | None) -> None:
    """`dyvit export --format triton`."""
    from .deploy_report import Progress
    from .serving.export import export_repository, plan_repository

    if dry_run:
        return show_plan(plan_repository(checkpoint, out, serving, config, load), json_file)
    report = export_repository(checkpoint, out, serving, config, load, Progress(step, progress))
    show(report, json_file)
    note(*report.notes)
    fail_notes(report.failures, report.advice)
    note(f"Next: {report.next_step(checkpoint)}")
    sys.exit(not report)


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
    from .serving.check import ServeConfig, check_serving, serve_repository

    config = ServeConfig(data, images, url, triton, port)
    if not check:
        return serve_repository(repository, config, note)
    report = check_serving(repository, config, progress)
    show(report, json_file)
    note(*report.notes)
    fail_notes(report.failures)
    sys.exit(not report)
