"""Compares shares with bounds exactly: floating-point shares fall on the wrong side of a bound that they equal."""
from __future__ import annotations

from fractions import Fraction

# Larger than any rounding error of a share.
ROUNDING = 1e-12


def exact(value: float | Fraction) -> Fraction:
    """A finite number as the decimal fraction that a user would write for it: 0.9 is 9/10, not the closest double."""
    return value if isinstance(value, Fraction) else Fraction(repr(float(value)))


def counted(share: float, images: int) -> int:
    """The number of images behind a measured `share` (0..1) of them."""
    return round(share * images)


def as_fraction(share: float, images: int) -> Fraction:
    """A measured `share` of `images` (at least 1) as the fraction of counts that it is; one that is no such fraction,
    because it is of other images, by its decimals."""
    count = counted(share, images)
    return Fraction(count, images) if abs(share * images - count) < ROUNDING * images else exact(share)
