"""Shares that were measured on a sample of images: their 95 % intervals, and what these say about a bound."""
from __future__ import annotations

import abc
import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

# 95 % of a normal distribution is within this many standard deviations of its mean.
Z95 = 1.959964
# More images than anyone has: a verdict that needs more cannot be decided.
MOST_IMAGES = 10**8
# Halvings of an interval of length 2, to the precision of a double.
HALVINGS = 55


class Interval(NamedTuple):
    """A 95 % confidence interval of a share or of a difference of shares."""

    low: float
    high: float


class Estimate(abc.ABC):
    """A share that was measured on `images` images, at least one."""

    images: int

    @property
    @abc.abstractmethod
    def share(self) -> Fraction:
        """The measured value: 0..1, or -1..1 for a difference."""

    @property
    @abc.abstractmethod
    def interval(self) -> Interval:
        """The 95 % confidence interval."""

    @abc.abstractmethod
    def on(self, images: int) -> Estimate:
        """The same rates on another number of images, rounded to whole images."""

    def within(self, bound: Fraction) -> bool | None:
        """Whether the true value is at most `bound`; None if the interval contains the bound."""
        low, high = self.interval
        return True if high <= bound else False if low > bound else None

    def images_needed(self, bound: Fraction) -> int | None:
        """About how many images decide about `bound` at the same rates; None if not even MOST_IMAGES do.

        The number has two significant digits: the rates themselves are estimates.
        """
        candidates = _round_numbers(self.images)
        if self.on(candidates[-1]).within(bound) is None:
            return None
        first = bisect.bisect_left(candidates, True, key=lambda n: self.on(n).within(bound) is not None)
        return candidates[min(first, len(candidates) - 1)]

    def doubt(self, bound: Fraction) -> str:
        """Why these images do not decide about `bound`, and how many would; empty if they decide."""
        if self.within(bound) is not None:
            return ""
        needed = self.images_needed(bound)
        return (f"too few images ({self.images:,}): about {needed:,} would do" if needed else
                "undecided: too close to the bound for any number of images")


@dataclass(frozen=True)
class Proportion(Estimate):
    """`count` of `images` images have a property. The interval is Wilson's score interval (1927)."""

    images: int
    count: int

    @property
    def share(self) -> Fraction:
        return Fraction(self.count, self.images)

    @property
    def interval(self) -> Interval:
        n, p, square = self.images, self.count / self.images, Z95 ** 2
        half = Z95 * math.sqrt(p * (1 - p) / n + square / (4 * n * n))
        low, high = ((p + square / (2 * n) + sign * half) / (1 + square / n) for sign in (-1, 1))
        # Rounding must not exclude a share that was measured.
        return Interval(max(0.0, min(low, p)), min(1.0, max(high, p)))

    def on(self, images: int) -> Proportion:
        return Proportion(images, _scaled(self.count, self.images, images))


@dataclass(frozen=True)
class UnpairedLoss(Estimate):
    """The accuracy lost by a model with `right` correct answers against one with `reference_right`, if it is not known
    which images these are.

    The interval is that of two independent samples of `images` images each (Newcombe 1998, Interval estimation for
    the difference between independent proportions, method 10), wider than needed if the images are the same.
    """

    images: int
    reference_right: int
    right: int

    @property
    def share(self) -> Fraction:
        return Fraction(self.reference_right - self.right, self.images)

    @property
    def interval(self) -> Interval:
        reference, mine = (Proportion(self.images, count) for count in (self.reference_right, self.right))
        (low_r, high_r), (low_m, high_m) = reference.interval, mine.interval
        r, m = reference.count / self.images, mine.count / self.images
        return Interval(r - m - math.hypot(r - low_r, high_m - m), r - m + math.hypot(high_r - r, m - low_m))

    def on(self, images: int) -> UnpairedLoss:
        return UnpairedLoss(images, *(_scaled(n, self.images, images) for n in (self.reference_right, self.right)))


@dataclass(frozen=True)
class PairedLoss(Estimate):
    """The accuracy lost by a model against another one on the same images: `worse` of them only the other model
    classifies correctly, `better` only this one.

    The interval inverts the score test of a difference of paired proportions (Tango 1998, Equivalence test and
    confidence interval for the difference in proportions for the paired-sample design), which for a difference of 0 is
    McNemar's test. It has a width even if no answer differs.
    """

    images: int
    worse: int
    better: int

    @property
    def share(self) -> Fraction:
        return Fraction(self.worse - self.better, self.images)

    @property
    def interval(self) -> Interval:
        middle = float(self.share)
        return Interval(_crossing(lambda loss: self.score(loss) <= Z95, -1.0, middle),
                        _crossing(lambda loss: self.score(loss) <= -Z95, middle, 1.0))

    def score(self, loss: float) -> float:
        """By how many standard deviations the measured loss exceeds what is expected if `loss` (-1..1) is true; falls
        with `loss`."""
        n, worse, better = self.images, self.worse, self.better
        # The most likely share of `better` images if the loss is `loss`: the root of a quadratic equation.
        b = (2 * n - worse + better) * loss - worse - better
        c = -better * loss * (1 - loss)
        share = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
        variance = n * (2 * share + loss * (1 - loss))
        excess = worse - better - n * loss
        if variance <= 0:
            return math.copysign(math.inf, excess) if excess else 0.0
        return excess / math.sqrt(variance)

    def on(self, images: int) -> PairedLoss:
        return PairedLoss(images, *(_scaled(n, self.images, images) for n in (self.worse, self.better)))


def _crossing(beyond: Callable[[float], bool], low: float, high: float) -> float:
    """Where `beyond` changes from False to True between `low` and `high`."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if beyond(middle):
            high = middle
        else:
            low = middle
    return high


def _scaled(count: int, images: int, wanted: int) -> int:
    """`count` of `images` as a count of `wanted`, rounded half up."""
    return (2 * count * wanted + images) // (2 * images)


def _round_numbers(above: int) -> list[int]:
    """The numbers of at most two significant digits above `above`, up to MOST_IMAGES; one number at least."""
    numbers = [digits * 10 ** power for power in range(len(str(MOST_IMAGES))) for digits in range(10, 100)]
    small = list(range(1, 10))
    return [n for n in (*small, *numbers) if above < n <= MOST_IMAGES] or [10 * above]
