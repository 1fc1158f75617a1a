"""The files of a run that people read: the recipe, a CSV row per epoch, and TensorBoard curves."""
from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..artifacts.files import atomic_write
from ..machine.processes import is_first
from ..optional import require
from .recipe import Recipe
from .report import EpochReport, Step

# Steps between two points of a curve.
EVERY = 10


class Logs:
    """Writes under `out`, in the first process only: `recipe.yaml`, `log.csv`, and `tensorboard/` where asked."""

    def __init__(self, out: Path, recipe: Recipe, tensorboard: bool) -> None:
        self._out = out if is_first() else None
        self._writer: Any = None
        if self._out is None:
            return
        with atomic_write(out / "recipe.yaml") as temporary:
            temporary.write_text(require("yaml").safe_dump(_plain(recipe.to_dict()), sort_keys=False))
        if tensorboard:
            require("tensorboard", extra="train")
            self._writer = require("torch.utils.tensorboard").SummaryWriter(str(out / "tensorboard"))

    def step(self, step: Step, number: int, lr: float) -> None:
        """Step `number` of the run."""
        if self._writer is None or number % EVERY:
            return
        curves = {"loss": step.loss, "lr": lr, "images_per_sec": step.images_per_sec, **step.parts}
        for name, value in (*curves.items(), *((f"kept/{s}", kept) for s, kept in enumerate(step.kept))):
            self._writer.add_scalar(f"{step.phase}/{name}", value, number)

    def epochs(self, reports: Sequence[EpochReport]) -> None:
        """All finished epochs; the last of them has just finished."""
        if self._out is None:
            return
        rows = [_row(report) for report in reports]
        # Written whole each time: an appended line can be torn, or be missing after a kill.
        with atomic_write(self._out / "log.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[-1]), restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        if self._writer is not None:
            report = reports[-1]
            for name, value in (_scores(report) | {"epoch_loss": report.loss}).items():
                self._writer.add_scalar(f"{report.phase}/{name}", value, report.epoch)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _row(report: EpochReport) -> dict[str, Any]:
    """An epoch with the column names of timm's summary.csv."""
    kept = {f"kept_{stage}": share for stage, share in enumerate(report.kept)}
    trained = {"loss": report.loss, **report.parts, **kept}
    return {"epoch": report.epoch, **{f"train_{name}": value for name, value in trained.items()},
            **{f"eval_{name}": value for name, value in _scores(report).items()}, "lr": report.lr}


def _scores(report: EpochReport) -> dict[str, float]:
    return {"top1": report.top1} | ({} if report.ema_top1 is None else {"ema_top1": report.ema_top1})


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
