"""Thresholds against closed forms."""
import math

import numpy as np
import pytest

from dyvit_deploy.calibration import observers
from dyvit_deploy.calibration.observers import BINS, INT8_LEVELS, METHODS, Histogram, threshold


def histogram(values) -> Histogram:
    result = Histogram()
    result.update(np.asarray(values, np.float32))
    return result


def normal(count=400_000, seed=0):
    return np.random.default_rng(seed).standard_normal(count, dtype=np.float32)


def test_the_histogram_does_not_depend_on_how_values_are_cut_into_batches():
    values = normal(10_000) * 3
    whole, pieces = histogram(values), Histogram()
    for part in np.array_split(values, 37):
        pieces.update(part)
    assert (whole.counts == pieces.counts).all() and whole.limit == pieces.limit
    assert (whole.minimum, whole.maximum) == (pieces.minimum, pieces.maximum)


@pytest.mark.parametrize("largest", [1e-6, 0.3, 1.0, 2.0, 5.0, 40_000.0])
def test_every_value_is_counted_in_the_bin_it_belongs_to(largest):
    values = np.linspace(-largest, largest, 999, dtype=np.float32)
    h = histogram(values)
    assert h.counts.sum() == len(values) and h.limit > largest >= h.limit / 2
    expected, _ = np.histogram(np.abs(values.astype(np.float64)), BINS, (0, h.limit))
    assert (h.counts == expected).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_has_threshold_zero(method):
    assert threshold(histogram(np.zeros(10)), method) == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_no_threshold_exceeds_the_largest_value(method):
    for scale in (1e-3, 1.0, 700.0):
        h = histogram(normal(5000) * scale)
        assert 0 < threshold(h, method) <= h.largest


def test_max_clips_nothing():
    assert threshold(histogram([-3.5, 1.0, 2.0]), "max") == 3.5


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0])
def test_percentile_of_a_uniform_distribution_is_that_part_of_its_range(percentile):
    h = histogram(np.linspace(0, 1, 100_001))
    found = observers.by_percentile(h.counts, h.limit, h.largest, percentile)
    assert found == pytest.approx(percentile / 100, abs=1.5 * h.limit / BINS)


def test_percentile_ignores_one_outlier_in_a_million():
    values = np.append(np.linspace(-1, 1, 1_000_000), 100.0)
    assert threshold(histogram(values), "percentile") < 1.1


def test_mse_of_a_uniform_distribution_is_its_whole_range():
    assert threshold(histogram(np.linspace(-1, 1, 100_001)), "mse") == pytest.approx(1, abs=0.02)


def test_mse_of_a_normal_distribution_is_the_known_optimum():
    """The best clip of a unit normal at 8 bits: rounding (t / 127) ** 2 / 12 plus the clipped tails."""
    grid = np.linspace(2, 6, 4001)
    tail = np.exp(-grid**2 / 2) / np.sqrt(2 * np.pi)
    beyond = np.array([0.5 * math.erfc(t / np.sqrt(2)) for t in grid])
    error = (grid / INT8_LEVELS) ** 2 / 12 + 2 * ((1 + grid**2) * beyond - grid * tail)
    best = grid[error.argmin()]
    assert 3.8 < best < 4.1
    assert threshold(histogram(normal()), "mse") == pytest.approx(best, abs=0.15)


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_a_far_outlier_is_clipped_and_the_bulk_is_not(method):
    """Beyond one in ten thousand an outlier is worth keeping; below, the bulk needs the levels."""
    found = threshold(histogram(np.append(normal(), 60.0)), method)
    assert 2.5 < found < 30


def test_entropy_keeps_a_uniform_distribution_whole():
    assert threshold(histogram(np.linspace(-1, 1, 100_001)), "entropy") > 0.9


def test_entropy_is_not_drawn_to_a_spike_of_zeros():
    """After a ReLU half the values are zero; the others keep their range."""
    values = np.maximum(normal(), 0)
    spike, without = threshold(histogram(values), "entropy"), threshold(histogram(values[values > 0]), "entropy")
    assert spike == pytest.approx(without, rel=0.05)
    assert spike > 2.5
