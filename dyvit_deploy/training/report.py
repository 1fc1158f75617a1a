"""What training tells while it runs and when it is done."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.table import Table
from rich.text import Text

from .losses import LossParts
from .recipe import Recipe


@dataclass(frozen=True)
class Started:
    """A phase begins, or goes on after `epoch` whole epochs and `step` steps when `resumed`; `other_data` is what it
    began with, where that was called otherwise."""

    phase: str
    recipe: Recipe
    steps: int
    processes: int
    epoch: int
    step: int
    resumed: bool
    other_data: str | None = None


@dataclass(frozen=True)
class Step:
    """One optimizer step, averaged over all processes.

    `parts` are unweighted losses; `kept` is the fraction of the patches kept after each stage;
    `images_per_sec` counts all processes, data loading included.
    """

    phase: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    parts: dict[str, float]
    kept: tuple[float, ...]
    images_per_sec: float


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch; `top1` and `ema_top1` are measured at the inference path, tokens removed.

    `kept` is the mean fraction kept per stage while training; `ema_top1` is None without a moving average.
    """

    phase: str
    epoch: int
    loss: float
    parts: dict[str, float]
    kept: tuple[float, ...]
    top1: float
    ema_top1: float | None
    lr: float
    images_per_sec: float
    seconds: float


@dataclass(frozen=True)
class TrainReport:
    """Where the checkpoints lie, and how good they are on the validation split.

    `best` is None before the first validation, `best_ema` also without a moving average. `skipped` names images that
    could not be read. `devices` names what each process computed on, in order of rank: its GPU, or the processor.
    With `eval_only`, `measured` tells what was, and `last` is None unless that is it.
    """

    KIND: ClassVar[str] = "train"

    best: str | None
    best_ema: str | None
    last: str | None
    top1: float | None
    ema_top1: float | None
    epochs: tuple[EpochReport, ...]
    recipe: Recipe
    skipped: tuple[str, ...]
    devices: tuple[str, ...]
    measured: str | None = None

    @property
    def choice(self) -> str | None:
        """The better one of `best` and `best_ema`."""
        return self.best_ema if self.best_ema and (self.ema_top1 or 0) > (self.top1 or 0) else self.best

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def table(self) -> Table:
        title = f"{self.measured or self.best}: validation top-1 {self.top1 or 0:.2%}"
        if self.best_ema:
            title += f"; {self.best_ema}: {self.ema_top1 or 0:.2%}"
        if not self.epochs:                                                # measured only
            only = Table("", box=None, show_header=False)
            only.add_row(Text(title))
            return only
        table = Table(title=Text(title), title_justify="left")
        for column in ("phase", "epoch", "top-1", "EMA top-1", "loss", *LossParts._fields, "kept", "images/s", "s"):
            table.add_column(column, justify="right")
        for e in self.epochs:
            ema = "-" if e.ema_top1 is None else f"{e.ema_top1:.2%}"
            table.add_row(e.phase, str(e.epoch), f"{e.top1:.2%}", ema, f"{e.loss:.3f}",
                          *(f"{e.parts[name]:.4f}" for name in LossParts._fields),
                          " ".join(f"{share:.3f}" for share in e.kept), f"{e.images_per_sec:.0f}", f"{e.seconds:.0f}")
        return table


Event = Started | Step | EpochReport
EventCallback = Callable[[Event], None]
