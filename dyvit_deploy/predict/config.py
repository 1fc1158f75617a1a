"""What to predict, and where the rows go."""
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..config import device_option, orient_option
from ..errors import ConfigError
from ..settings.fields import JsonConfig, option

RUNNERS = ("local", "ray")
DEFAULT_TOP = 5


@dataclass(frozen=True)
class PredictConfig(JsonConfig):
    """What to predict, and into which files, if any. `device` as in `open_runner`."""

    top: int = option(DEFAULT_TOP, "Likeliest classes per image.")
    batch: int = option(32, "Images per run.")
    csv: str | None = option(None, "Write the rows to this .csv file, instead of showing them.", metavar="FILE")
    parquet: str | None = option(None, "Write them to this .parquet file; both may be given.", metavar="FILE")
    labels: str | None = option(None, "Names of the model's classes: one per line, JSON, or ImageNet's own lists.",
                                metavar="FILE")
    runner: str = option("local", "ray: processes of this machine, or of the cluster in RAY_ADDRESS.", choices=RUNNERS)
    workers: int | None = option(None, "Processes of --runner ray; default: one per GPU, else per machine.")
    orient: bool = orient_option()
    device: str | None = device_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("top", "batch", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} must be at least 1, not {value}.")
        for name in ("csv", "parquet"):
            value = getattr(self, name)
            if value is not None and Path(value).suffix.lower() != f".{name}":
                raise ConfigError(f"--{name} writes a .{name} file, not {Path(value).name!r}.")
        if self.csv and self.parquet and os.path.realpath(self.csv) == os.path.realpath(self.parquet):
            raise ConfigError(f"--csv and --parquet both write {os.path.realpath(self.csv)}; name two files.")
        if self.workers is not None and self.runner == "local":
            raise ConfigError("--workers is for --runner ray; on one machine a single process uses every core.")

    @property
    def files(self) -> tuple[Path, ...]:
        """The files to write; none when the rows are only shown."""
        return tuple(Path(file) for file in (self.csv, self.parquet) if file)

    def check_apart(self, report: str | None) -> None:
        """Raises ConfigError for a report in the place of the rows."""
        if report and any(os.path.realpath(report) == os.path.realpath(file) for file in self.files):
            raise ConfigError(f"--json {report} is the file that the rows go to; name another one.")

    @property
    def partial(self) -> Path | None:
        """The file that holds the rows until all are there."""
        return Path(f"{self.files[0]}.partial") if self.files else None
