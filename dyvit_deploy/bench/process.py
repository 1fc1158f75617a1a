"""What only a fresh process tells of an artifact: its memory."""
from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import LoadConfig
from ..machine import peak_mib
from ..runners.base import Runner
from ..runners.open import load_for, open_runner

log = logging.getLogger(__name__)


def make_feed(runner: Runner, batch: int, image_size: tuple[int, int] | None = None, seed: int = 0) -> NDArray[Any]:
    """Random input for `runner`: float standard normal, or uint8 0..255.

    Raises:
        ConfigError: the artifact's batch is fixed at another size.
        BackendError: its image size is free and `image_size` is None.
    """
    runner.check_batch(batch)
    size = runner.image_spec(image_size).image_size
    rng = np.random.default_rng(seed)
    if runner.input.dtype == "uint8":
        return rng.integers(0, 256, (batch, *size, 3), dtype=np.uint8)
    return rng.standard_normal((batch, 3, *size), dtype=np.float32).astype(runner.input.dtype)


def peak_memory(path: str, batch: int, load: LoadConfig, device: str | None, threads: int) -> float | None:
    """MiB at the peak of a fresh process that opens `path` and runs one batch; None where unknown."""
    arguments = json.dumps([str(Path(path).resolve()), batch, load.to_dict(), device, threads])
    code = "from dyvit_deploy.bench.process import report_peak; report_peak()"
    done = subprocess.run([sys.executable, "-c", code, arguments], capture_output=True, text=True,
                          cwd=Path(__file__).parents[2])
    if done.returncode != 0 or not done.stdout:
        log.warning("the memory of %s could not be measured: %s", path, done.stderr[-500:])
        return None
    return float(done.stdout.split()[-1])


def report_peak() -> None:
    """What `peak_memory` runs in the other process; writes MiB to standard output."""
    path, batch, load, device, threads = json.loads(sys.argv[1])
    config = load_for(path, LoadConfig.from_dict(load))
    with open_runner(path, load=config, device=device, threads=threads) as runner:
        runner.infer(make_feed(runner, batch, config.image_size))
    peak = peak_mib()
    if peak is not None:
        sys.stdout.write(f"{peak}\n")
