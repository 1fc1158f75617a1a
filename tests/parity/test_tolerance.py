import math
from fractions import Fraction

import numpy as np
import pytest

from dyvit_deploy.config import PRECISIONS
from dyvit_deploy.errors import ConfigError
from dyvit_deploy.parity.kept_tokens import StageOverlap
from dyvit_deploy.parity.tolerance import (
    TOLERANCES,
    PrecisionTolerance,
    Tolerance,
    mismatches,
    relative_error,
    uncertainty,
)


def logits(seed=0):
    return np.random.default_rng(seed).standard_normal((20, 10), dtype=np.float32)


def test_the_relative_error_is_the_noise_over_the_signal():
    x = logits()
    x -= x.mean(axis=1, keepdims=True)
    noise = logits(1)
    noise -= noise.mean(axis=1, keepdims=True)
    expected = 0.1 * np.sqrt((noise**2).mean() / (x**2).mean())
    assert relative_error(x, x + 0.1 * noise) == pytest.approx(expected, rel=1e-4)


def test_a_constant_added_to_all_logits_is_not_an_error():
    assert relative_error(logits(), logits() + 3) < 1e-6


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_is_an_infinite_error(bad):
    x = logits()
    x[3, 2] = bad
    assert relative_error(logits(), x) == float("inf")


def test_every_lower_precision_has_a_tolerance_and_fewer_bits_have_a_wider_one():
    assert set(TOLERANCES) == set(PRECISIONS) - {"float32"}
    half, brain, int8 = TOLERANCES["float16"], TOLERANCES["bfloat16"], TOLERANCES["int8"]
    assert half.top1 >= brain.top1 >= int8.top1 and half.error <= brain.error <= int8.error
    assert half.overlap >= brain.overlap >= int8.overlap


@pytest.mark.parametrize("top1, error, overlap, message", [
    (0.95, 0.0, [], None), (0.90, 0.0, [], "2 of 20 images change"), (1.0, 0.051, [], "off by 5.1%"),
    (1.0, 0.0, [0.99, 0.94], "stage 1 keeps 94.0%"), (1.0, float("inf"), [], "off by inf"),
])
def test_each_violated_bound_is_one_sentence(top1, error, overlap, message):
    found = mismatches(top1, error, overlap, 20, PrecisionTolerance(0.97, 0.05, 0.95))
    assert found == [] if message is None else len(found) == 1 and message in found[0]


def test_one_image_may_always_change():
    assert mismatches(0.5, 0.0, [], 2, PrecisionTolerance(1.0, 0.05, 0.95)) == []


def test_values_outside_their_range_are_refused():
    with pytest.raises(ConfigError, match="top1"):
        PrecisionTolerance(1.5, 0, 0)


def test_bounds_on_images_are_exact_for_every_number_of_them():
    """As exact arithmetic on the bounds as they are written; compare() gives the share as a float."""
    wrong = []
    for name, tolerance in TOLERANCES.items():
        bound = 1 - Fraction(str(tolerance.top1))
        for n in range(2, 501):
            for changed in {math.floor(bound * n), math.floor(bound * n) + 1} - {0}:
                failed = bool(mismatches((n - changed) / n, 0.0, [], n, tolerance))
                wrong += [(name, n, changed)] if failed != (changed > max(1, bound * n)) else []
    assert not wrong


@pytest.mark.parametrize("kept", [5, 7, 20, 44, 100])
def test_overlaps_are_exact_for_every_number_of_images(kept):
    for n in range(1, 200):
        total = n * kept
        least = math.ceil(Fraction(9, 10) * total)
        for common, same in ((least, True), (least - 1, False)):
            per_image = np.full(n, common // n) + (np.arange(n) < common % n)
            overlap = StageOverlap(per_image / kept, per_image / kept, kept)
            assert (mismatches(1.0, 0.0, [overlap.mean], n, TOLERANCES["int8"]) == []) == same, (n, common)


def test_a_comparison_says_how_sure_its_agreement_is():
    assert uncertainty(1.0, 64, Tolerance()) == (
        "0 of 64 images change their best class, 95 % interval 0.0% to 5.7%.")
    few = uncertainty(18 / 20, 20, TOLERANCES["int8"])
    assert "2 of 20 images" in few and "too close to the bound" in few
    assert "too few images (20): about 35 would do." in uncertainty(1.0, 20, TOLERANCES["int8"])
    assert "too few" not in uncertainty(0.97, 512, TOLERANCES["int8"])
