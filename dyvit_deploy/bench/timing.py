"""Times calls in turns, and computes confidence intervals of the results."""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .config import BenchConfig

# Counted runs of one candidate in a row.
TURN = 3
# How many times as many runs there are at the next look at whether they are stable.
GROWTH = 1.1
# 95 % of a normal distribution is within this many standard deviations of its mean.
Z95 = 1.96


def alternate(calls: Sequence[Callable[[], Any]], config: BenchConfig) -> list[list[float]]:
    """Times the calls in turns until all are stable or the time is up; returns the seconds of each call.

    A turn is one run that is discarded, because the threads of the previous candidate may still be spinning, and TURN
    runs that count. Every other round runs in reverse order, so that no candidate always follows the same one.
    """
    for call in calls:
        for _ in range(config.warmup):
            call()
    samples: list[list[float]] = [[] for _ in calls]
    order, due = list(zip(calls, samples)), config.min_runs
    end = time.perf_counter() + config.seconds
    while time.perf_counter() < end or len(samples[0]) < config.min_runs:
        for call, times in order:
            call()
            for _ in range(TURN):
                started = time.perf_counter()
                call()
                times.append(time.perf_counter() - started)
        order.reverse()
        if len(samples[0]) >= due:
            if all(is_stable(times, config.stable) for times in samples):
                break
            # This sorts all samples: after every round it would take more time than the calls, if those are short.
            due = math.ceil(len(samples[0]) * GROWTH)
    return samples


def quantile_interval(values: Sequence[float], q: float) -> tuple[float | None, float | None]:
    """The 95 % confidence interval of quantile `q`; an end is None if there are too few values for it.

    It is the interval of order statistics (normal approximation of the binomial ranks), which assumes nothing about
    the distribution of the values except that they are independent.
    """
    ordered, count = np.sort(values), len(values)
    half = Z95 * np.sqrt(count * q * (1 - q))
    low, high = int(np.floor(count * q - half)), int(np.ceil(count * q + half))
    return (float(ordered[low]) if low >= 0 else None, float(ordered[high]) if high < count else None)


def is_stable(seconds: Sequence[float], width: float) -> bool:
    """True if the 95 % confidence interval of the median is within `width` (a fraction) of the median."""
    low, high = quantile_interval(seconds, 0.5)
    median = float(np.median(seconds))
    return low is not None and high is not None and max(median - low, high - median) <= width * median
