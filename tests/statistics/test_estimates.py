"""Intervals: values from the literature, the definition, and their coverage in a simulation."""
from fractions import Fraction

import numpy as np
import pytest

from dyvit_deploy.statistics.estimates import Z95, PairedLoss, Proportion, UnpairedLoss

POINT = Fraction(1, 100)


@pytest.mark.parametrize("count, images, low, high", [
    # Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3.
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)])
def test_the_interval_of_a_share_is_the_published_one(count, images, low, high):
    assert Proportion(images, count).interval == pytest.approx((low, high), abs=5e-5)


def test_the_interval_of_an_unpaired_loss_is_newcombes():
    """Method 10 for samples of equal size: 7/10 against 2/10, whose Wilson intervals are [0.3968, 0.8922] and [0.0567,
    0.5098]."""
    low, high = UnpairedLoss(10, 7, 2).interval
    assert low == pytest.approx(0.5 - ((0.7 - 0.3968) ** 2 + (0.5098 - 0.2) ** 2) ** 0.5, abs=2e-4)
    assert high == pytest.approx(0.5 + ((0.8922 - 0.7) ** 2 + (0.2 - 0.0567) ** 2) ** 0.5, abs=2e-4)
    assert UnpairedLoss(100, 80, 80).interval == pytest.approx((-0.111, 0.111), abs=5e-4)


def test_the_interval_of_a_paired_loss_is_the_published_one():
    """Agresti, Categorical Data Analysis, section 10.1: 150 and 86 changes of mind among 1600."""
    assert PairedLoss(1600, 150, 86).interval == pytest.approx((0.0214, 0.0590), abs=1e-4)


def likelihood(n, worse, better, loss):
    """The profile of the multinomial likelihood: the share of `better` that is most likely, on a fine grid."""
    shares = np.linspace(max(0.0, -loss), (1 - loss) / 2, 400_001)[1:-1]
    with np.errstate(divide="ignore"):
        values = (worse * np.log(shares + loss) + better * np.log(shares)
                  + (n - worse - better) * np.log(1 - 2 * shares - loss))
    return shares[values.argmax()]


@pytest.mark.parametrize("n, worse, better", [(100, 3, 1), (44, 7, 2), (1000, 12, 30)])
def test_the_ends_of_a_paired_interval_are_those_of_the_score_test(n, worse, better):
    for end, sign in zip(PairedLoss(n, worse, better).interval, (1, -1)):
        share = likelihood(n, worse, better, end)
        variance = n * (2 * share + end - end ** 2)
        assert (worse - better - n * end) / variance ** 0.5 == pytest.approx(sign * Z95, abs=1e-3)


@pytest.mark.parametrize("n", [30, 400])
def test_a_paired_interval_excludes_no_loss_exactly_if_mcnemars_test_does(n):
    for worse in range(0, 25):
        for better in range(0, 25 - worse):
            significant = (worse - better) ** 2 > Z95 ** 2 * (worse + better)
            assert (PairedLoss(n, worse, better).within(Fraction(0)) is not None) == significant


def test_pairs_are_surer_than_two_samples_and_no_difference_is_not_certainty():
    paired, unpaired = PairedLoss(1000, 10, 10).interval, UnpairedLoss(1000, 800, 800).interval
    assert unpaired.low < paired.low < 0 < paired.high < unpaired.high
    # The upper end for no difference on n images: z^2 / (n + z^2).
    assert PairedLoss(100, 0, 0).interval == pytest.approx((-0.037, 0.037), abs=1e-4)
    for n, worse, better in ((1, 0, 0), (1, 1, 0), (1, 0, 1), (5, 5, 0), (5, 2, 3), (10**7, 0, 0)):
        low, high = PairedLoss(n, worse, better).interval
        assert -1 <= low <= (worse - better) / n <= high <= 1 and low < high
        mirrored = PairedLoss(n, better, worse).interval
        assert mirrored == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize("n, worse, better", [
    (50, 0.1, 0.05), (100, 0.02, 0.02), (200, 0.05, 0.02), (1000, 0.01, 0.005)])
def test_nineteen_of_twenty_paired_intervals_contain_the_truth(n, worse, better):
    drawn, counts = np.unique(np.random.default_rng(0).multinomial(
        n, [worse, better, 1 - worse - better], size=4000)[:, :2], axis=0, return_counts=True)
    ends = np.array([PairedLoss(n, *map(int, row)).interval for row in drawn])
    inside = (ends[:, 0] <= worse - better) & (worse - better <= ends[:, 1])
    assert 0.94 <= counts[inside].sum() / counts.sum() <= 0.975


@pytest.mark.parametrize("estimate", [
    PairedLoss(100, 2, 2), PairedLoss(100, 0, 0), PairedLoss(100, 3, 1), PairedLoss(64, 0, 1), PairedLoss(7, 1, 1),
    PairedLoss(5000, 60, 20), UnpairedLoss(100, 80, 80), UnpairedLoss(100, 80, 78), Proportion(20, 0),
    Proportion(64, 1)])
def test_as_many_images_as_are_named_decide_at_the_same_rates_and_far_fewer_do_not(estimate):
    assert estimate.within(POINT) is None
    needed = estimate.images_needed(POINT)
    assert needed > estimate.images and estimate.on(needed).within(POINT) == (estimate.share <= POINT)
    assert f"too few images ({estimate.images:,}): about {needed:,} would do" == estimate.doubt(POINT)
    # Two significant digits.
    assert int(str(needed).rstrip("0")) < 100
    fewer = needed // 2
    assert fewer <= estimate.images or estimate.on(fewer).within(POINT) is None


def test_a_loss_at_its_bound_is_not_decided_by_any_number_of_images():
    for estimate in (PairedLoss(100, 1, 0), PairedLoss(50_000, 1000, 500), UnpairedLoss(1000, 900, 890)):
        assert estimate.images_needed(POINT) is None and "too close to the bound" in estimate.doubt(POINT)


def test_a_decided_estimate_has_no_doubt():
    assert PairedLoss(50_000, 300, 300).within(POINT) is True and PairedLoss(1000, 100, 20).within(POINT) is False
    assert not PairedLoss(50_000, 300, 300).doubt(POINT) and not PairedLoss(1000, 100, 20).doubt(POINT)
