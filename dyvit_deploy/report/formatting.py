"""Formats numbers in the same way everywhere on the page."""
from __future__ import annotations


def format_percent(share: float) -> str:
    return "100 %" if share == 1 else f"{100 * share:.2f} %"


def format_error(value: float) -> str:
    """A relative error: in percent, or as a power of ten below 0.01 %."""
    return f"{100 * value:.2g} %" if value >= 1e-4 else f"{value:.0e}"


def format_rate(value: float) -> str:
    """A rate with at least three digits and separators of thousands."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def format_ms(value: float) -> str:
    """Milliseconds with three digits, never as a power of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def format_ratio(value: float) -> str:
    return f"{value:.2f}×"  # noqa: RUF001  a times sign


def format_images(images: int, data: str) -> str:
    """The number of images (0: unknown) and the name of the data, without the folders above it."""
    name = data.rstrip("/").rsplit("/", 1)[-1]
    return f"{images:,} image{'s' * (images != 1)} of {name}" if images else f"images of {name}"


def short_hash(digest: str) -> str:
    return digest[:12]
