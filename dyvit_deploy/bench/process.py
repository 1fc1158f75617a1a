"""What only a fresh process tells of an artifact: its memory, and how long its first answer takes."""
from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts.files import is_timm
from ..config import LoadConfig
from ..machine.hardware import peak_mib
from ..runners.base import Runner
from ..runners.open import load_for, open_runner

log = logging.getLogger(__name__)
PATIENCE = 600                              # seconds, for a model of gigabytes on a busy machine


@dataclass(frozen=True)
class Start:
    """What a fresh process pays: `load_ms` until the artifact is open, the import of its library included, then
    `first_ms` for the first batch, compilation included; `peak_rss_mib` is the peak of its resident memory after
    that batch, None where it cannot be measured."""

    load_ms: float
    first_ms: float
    peak_rss_mib: float | None


def make_feed(runner: Runner, batch: int, image_size: tuple[int, int] | None = None) -> NDArray[Any]:
    """Random input for `runner`: float standard normal, or uint8 0..255.

    Raises:
        ConfigError: the artifact's batch is fixed at another size.
        BackendError: its image size is free and `image_size` is None.
    """
    runner.check_batch(batch)
    size = runner.image_spec(image_size).image_size
    rng = np.random.default_rng(0)
    if runner.input.dtype == "uint8":
        return rng.integers(0, 256, (batch, *size, 3), dtype=np.uint8)
    return rng.standard_normal((batch, 3, *size), dtype=np.float32).astype(runner.input.dtype)


def measure_start(path: str, batch: int, load: LoadConfig, device: str | None, threads: int) -> Start | None:
    """A fresh process that opens `path` and runs one batch; None, with a warning in the log, when it fails."""
    where = path if is_timm(path) else str(Path(path).resolve())
    cache = load.engine.runtime_cache and str(Path(load.engine.runtime_cache).resolve())
    load = dataclasses.replace(load, engine=dataclasses.replace(load.engine, runtime_cache=cache))
    arguments = json.dumps([where, batch, load.to_dict(), device, threads])
    code = "from dyvit_deploy.bench.process import report_start; report_start()"
    try:
        done = subprocess.run([sys.executable, "-c", code, arguments], capture_output=True, text=True, check=True,
                              cwd=Path(__file__).parents[2], timeout=PATIENCE)
    except subprocess.SubprocessError as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()
        log.warning("the start of %s could not be measured: %s", path, said[-1])
        return None
    return Start(**json.loads(done.stdout.splitlines()[-1]))


def report_start() -> None:
    """What `measure_start` runs in the other process; writes a `Start` as JSON to standard output."""
    path, batch, load, device, threads = json.loads(sys.argv[1])
    config = load_for(path, LoadConfig.from_dict(load))
    began = time.perf_counter()
    with open_runner(path, load=config, device=device, threads=threads) as runner:
        opened = time.perf_counter()
        feed = make_feed(runner, batch, config.image_size)
        asked = time.perf_counter()
        runner.infer(feed)
        answered = time.perf_counter()
        start = Start((opened - began) * 1e3, (answered - asked) * 1e3, peak_mib())
    sys.stdout.write(json.dumps(dataclasses.asdict(start)) + "\n")
