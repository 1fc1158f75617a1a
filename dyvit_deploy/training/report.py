"""The events that training emits while it runs, and its final report."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.text import Text

from ..settings.tables import Table
from .losses import LossParts
from .recipe import Recipe


@dataclass(frozen=True)
class Started:
    """A phase starts or, if `resumed`, continues after `epoch` epochs and `step` steps of the next. `other_data` is
    the data that a resumed run started with, if its name differs."""

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
    """One finished epoch. `top1` and `ema_top1` are measured on the inference path, with tokens removed.

    `kept` is the mean fraction of patches kept in training, per stage. `ema_top1` is None without a moving average.
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
    """The paths of the checkpoints, and their accuracy on the validation split.

    `best` is None before the first validation, and `best_ema` also without a moving average. `skipped` names the
    images that could not be read. `devices` is the GPU or processor of each process, by rank. With `eval_only`,
    `measured` describes the validated model, and `last` is None unless it is that model.
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
        """The more accurate of `best` and `best_ema`."""
        return self.best_ema if self.best_ema and (self.ema_top1 or 0) > (self.top1 or 0) else self.best

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def table(self) -> Table:
        title = f"{self.measured or self.best}: validation top-1 {self.top1 or 0:.2%}"
        if self.best_ema:
            title += f"; {self.best_ema}: {self.ema_top1 or 0:.2%}"
        # Without epochs, a model was only validated.
        if not self.epochs:
            single = Table("", box=None, show_header=False)
            single.add_row(Text(title))
            return single
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
