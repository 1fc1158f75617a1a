import numpy as np
import pytest

from dyvit_deploy.bench.timing import quantile_interval


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_the_interval_holds_the_true_quantile_in_95_of_100_experiments(q):
    rng = np.random.default_rng(0)
    # The quantile of the exponential distribution.
    truth = -np.log(1 - q)
    intervals = [quantile_interval(rng.exponential(size=200), q) for _ in range(500)]
    hits = [low <= truth <= high for low, high in intervals]
    assert 0.92 <= np.mean(hits) <= 0.99


def test_its_ends_are_the_values_at_the_binomial_ranks_around_the_quantile():
    """100 values, half the width 1.96 * sqrt(100 * q * (1 - q)): 9.8 ranks at the median, 5.88 at 0.9."""
    assert quantile_interval([float(v) for v in range(100)], 0.5) == (40.0, 60.0)
    assert quantile_interval([float(v) for v in range(100)], 0.9) == (84.0, 96.0)


def test_too_few_runs_have_no_interval_of_the_tail():
    low, high = quantile_interval(list(range(30)), 0.99)
    assert low is not None and high is None
    assert None not in quantile_interval(list(range(2000)), 0.99)
