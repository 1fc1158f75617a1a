"""How to time artifacts."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config import device_option
from ..errors import ConfigError
from ..settings.fields import JsonConfig, option


@dataclass(frozen=True)
class BenchConfig(JsonConfig):
    """How to time.

    A batch size ends after `seconds`, even if it is not `stable`. `warmup` runs are thrown away. `baseline` None builds
    the dense backbone from each artifact's own metadata, with random weights, because time does not depend on them.
    `memory` measures peak memory and the time to the first answer, in a process per row. `peak` is measured in each
    runtime and precision; `profile` takes artifacts apart where their runtime can.
    """

    batches: tuple[int, ...] = option((1, 8, 32), "Batch sizes.", "--batch")
    seconds: float = option(20.0, "Time limit per batch size.")
    warmup: int = 3
    min_runs: int = 10
    stable: float = option(0.02, "A batch size is done when the 95 % interval of every median is within this share of "
                                 "it.")
    baseline: str | Path | None = option(None, "Compare with this artifact instead of the dense backbone.")
    device: str | None = device_option()
    threads: int = option(0, "Threads of ONNX Runtime and OpenVINO; default: all cores.")
    memory: bool = True
    transfers: bool = option(False, "On a GPU, count the copies between host and GPU in the latency.")
    cpus: tuple[int, ...] = option((), "Run on these cores only: 0,1.")
    peak: bool = option(False, "Also measure the machine's matrix-product peak, as a bound.")
    profile: bool = option(False, "Also show where the time goes: stem, blocks, predictors, gathers.")

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1:
            raise ConfigError(f"Batch sizes {list(self.batches)} must be at least 1.")
        if not 0 < self.seconds < float("inf"):
            raise ConfigError(f"The time limit must be positive, not {self.seconds} s.")
        if not 0 < self.stable < float("inf"):
            raise ConfigError(f"The share that a median may be unsure by must be positive, not {self.stable}.")
        if self.threads < 0:
            raise ConfigError(f"The number of threads must be 0 (all cores) or more, not {self.threads}.")
        object.__setattr__(self, "cpus", tuple(dict.fromkeys(self.cpus)))
