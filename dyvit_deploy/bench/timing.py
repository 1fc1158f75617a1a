"""Times calls in turns and says how sure a figure is."""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .config import BenchConfig

TURN = 3                                    # counted runs in a row of one candidate
Z95 = 1.96                                  # standard deviations that hold 95 % of a normal distribution


def alternate(calls: Sequence[Callable[[], Any]], config: BenchConfig) -> list[list[float]]:
    """Seconds of each call, taken in turns until all are stable or the time is up.

    A turn is one run that is thrown away and TURN that count: the threads of the candidate before may
    still be spinning during the first. Every other round goes backwards, so that no candidate always
    follows the same one.
    """
    for call in calls:
        for _ in range(config.warmup):
            call()
    samples: list[list[float]] = [[] for _ in calls]
    order = list(zip(calls, samples))
    end = time.perf_counter() + config.seconds
    while time.perf_counter() < end or len(samples[0]) < config.min_runs:
        for call, times in order:
            call()
            for _ in range(TURN):
                started = time.perf_counter()
                call()
                times.append(time.perf_counter() - started)
        order.reverse()
        if len(samples[0]) >= config.min_runs and all(is_stable(times, config.stable) for times in samples):
            break
    return samples


def quantile_interval(values: Sequence[float], q: float) -> tuple[float | None, float | None]:
    """The 95 % confidence interval of quantile `q`; None for an end that so few values cannot tell.

    It is that of order statistics (normal approximation of the binomial ranks), which assumes nothing about the
    distribution of the values, only that they are independent.
    """
    ordered, count = np.sort(values), len(values)
    half = Z95 * np.sqrt(count * q * (1 - q))
    low, high = int(np.floor(count * q - half)), int(np.ceil(count * q + half))
    return (float(ordered[low]) if low >= 0 else None, float(ordered[high]) if high < count else None)


def is_stable(seconds: Sequence[float], width: float) -> bool:
    """True when the 95 % confidence interval of the median lies within `width` (a fraction) of it."""
    low, high = quantile_interval(seconds, 0.5)
    median = float(np.median(seconds))
    return low is not None and high is not None and max(median - low, high - median) <= width * median
