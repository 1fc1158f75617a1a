"""The commands that show what is known: report. `cli.py` puts them into `dyvit`."""
from __future__ import annotations

from typing import Any

import click

from .options import json_option
from .terminal import fail_notes, note, progress, show


@click.command("report")
@click.argument("folder")
@click.option("-o", "--out", metavar="FILE", help="HTML file to write; default: report.html in FOLDER.")
@click.option("--data", help="Images for the galleries: a folder, or digits; default: digits for models of them.")
@click.option("--images", type=int, default=10, show_default=True, help="At most this many; 0 for no galleries.")
@click.option("--max-drop", type=float, default=1.0, show_default=True, metavar="POINTS",
              help="Points of top-1 that an artifact may lose against its checkpoint and the dense model.")
@click.option("--no-run", is_flag=True, help="Run no artifact: no galleries.")
@json_option
def report_page(folder: str, out: str | None, json_file: str | None, no_run: bool, **options: Any) -> None:
    """Write everything known of the artifacts in FOLDER on one page: verdicts, trade-offs, galleries, origin.

    It reads the artifacts and the JSON of check, eval, bench, export and sweep beside them (--json FOLDER/NAME.json),
    one folder deep. It describes: exit 0 whatever the verdicts are.
    """
    from .report.page import ReportConfig, write_report

    report = write_report(folder, out, ReportConfig(run=not no_run, **options), progress)
    show(report, json_file)
    note(*report.notes)
    fail_notes(report.failures)
    note(f"Open {report.path} in a browser; it is one file and needs no network.")
