"""Times calls in turns and says how sure a figure is."""
from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from .report import BenchConfig

TURN = 3                                    # counted runs in a row of one candidate


def alternate(calls: Sequence[Any], config: BenchConfig) -> list[list[float]]:
    """Seconds of each call, taken in turns until all are stable or the time is up.

    A turn is one run that is thrown away and TURN that count: the threads of the candidate before may
    still be spinning during the first.
    """
    for call in calls:
        for _ in range(config.warmup):
            call()
    samples: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + config.seconds
    while time.perf_counter() < end or len(samples[0]) < config.min_runs:
        for call, times in zip(calls, samples):
            call()
            for _ in range(TURN):
                started = time.perf_counter()
                call()
                times.append(time.perf_counter() - started)
        if len(samples[0]) >= config.min_runs and all(is_stable(times, config.stable) for times in samples):
            break
    return samples


def is_stable(seconds: Sequence[float], width: float) -> bool:
    """True when the 95 % confidence interval of the median lies within `width` (a fraction) of it.

    The interval is that of order statistics, which assumes nothing about the distribution.
    """
    ordered, count = np.sort(seconds), len(seconds)
    half = 0.98 * np.sqrt(count)                                           # 1.96 * sqrt(n) / 2
    low, high = max(0, int(count / 2 - half)), min(count - 1, int(np.ceil(count / 2 + half)))
    median = np.median(ordered)
    return bool(max(median - ordered[low], ordered[high] - median) <= width * median)
