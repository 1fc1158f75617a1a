"""Measures in a fresh process how much memory an artifact needs, and how long it takes to start."""
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
from ..settings.notes import LOGGER

log = logging.getLogger(__name__)
# Time limit of the process in seconds; enough for a model of gigabytes on a busy machine.
START_TIMEOUT = 600


@dataclass(frozen=True)
class Start:
    """The cost of a start in a fresh process.

    `load_ms` is the time to open the artifact, including the import of its library, `first_ms` that of the first batch,
    including compilation. `peak_rss_mib` is the peak of resident memory after that batch, None if not measurable.
    """

    load_ms: float
    first_ms: float
    peak_rss_mib: float | None


def make_feed(runner: Runner, batch: int, image_size: tuple[int, int] | None = None) -> NDArray[Any]:
    """Random input for `runner`: standard normal floats, or uint8 0..255.

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
    """Opens `path` in a fresh process and runs one batch; returns None, with a warning in the log, if that fails."""
    absolute = path if is_timm(path) else str(Path(path).resolve())
    cache = load.engine.runtime_cache and str(Path(load.engine.runtime_cache).resolve())
    load = dataclasses.replace(load, engine=dataclasses.replace(load.engine, runtime_cache=cache))
    arguments = json.dumps([absolute, batch, load.to_dict(), device, threads])
    code = "from dyvit_deploy.bench.process import report_start; report_start()"
    try:
        done = subprocess.run([sys.executable, "-c", code, arguments], capture_output=True, text=True, check=True,
                              cwd=Path(__file__).parents[2], timeout=START_TIMEOUT)
    except subprocess.SubprocessError as error:
        output = str(getattr(error, "stderr", None) or error).strip().splitlines()
        log.warning("the start of %s could not be measured: %s", path, output[-1])
        return None
    return Start(**json.loads(done.stdout.splitlines()[-1]))


def report_start() -> None:
    """The code of the process that `measure_start` starts; writes a `Start` as JSON to standard output."""
    # The first process has told what there is to tell.
    logging.getLogger(LOGGER).disabled = True
    path, batch, load, device, threads = json.loads(sys.argv[1])
    config = load_for(path, LoadConfig.from_dict(load))
    began = time.perf_counter()
    with open_runner(path, load=config, device=device, threads=threads) as runner:
        opened = time.perf_counter()
        feed = make_feed(runner, batch, config.image_size)
        fed = time.perf_counter()
        runner.infer(feed)
        inferred = time.perf_counter()
        start = Start((opened - began) * 1e3, (inferred - fed) * 1e3, peak_mib())
    sys.stdout.write(json.dumps(dataclasses.asdict(start)) + "\n")
