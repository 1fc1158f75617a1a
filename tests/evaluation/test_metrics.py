import numpy as np
import pytest

from dyvit_deploy.evaluation.metrics import box_coverage, calibration_error, kept_counts, pooled, top_probability


def test_an_honest_model_has_no_calibration_error():
    assert calibration_error(np.full(10, 0.7), np.arange(10) < 7) == pytest.approx(0)
    assert calibration_error(np.ones(4), np.ones(4, bool)) == 0


def test_the_gaps_of_the_bins_are_weighed_by_their_images():
    confidence, correct = np.array([0.9, 0.9, 0.9, 0.4]), np.array([1, 1, 0, 1])
    assert calibration_error(confidence, correct) == pytest.approx(0.75 * (0.9 - 2 / 3) + 0.25 * 0.6)
    assert calibration_error(confidence, correct, bins=1) == pytest.approx(abs(confidence.mean() - 0.75))


def test_an_upper_edge_belongs_to_its_bin():
    assert calibration_error(np.array([0.5, 0.51]), np.array([1, 0]), bins=2) == pytest.approx((0.5 + 0.51) / 2)
    assert calibration_error(np.array([0.5, 0.49]), np.array([1, 0]), bins=2) == pytest.approx(0.01 / 2)


def test_the_order_of_the_images_changes_no_digit():
    rng = np.random.default_rng(0)
    confidence, correct = rng.random(999), rng.random(999) < 0.5
    found = {calibration_error(confidence[order], correct[order]) for order in (rng.permutation(999) for _ in range(9))}
    assert len(found) == 1 and np.isnan(calibration_error(confidence[:0], correct[:0]))


def test_confidence_is_the_largest_softmax_and_zero_where_there_is_none():
    logits = np.array([[1, 2, 3], [1e4, 0, 0], [np.nan, 0, 1]], np.float32)
    assert top_probability(logits) == pytest.approx([np.exp(3) / np.exp([1, 2, 3]).sum(), 1, 0])


def test_kept_patches_are_counted_over_the_images():
    assert kept_counts(np.array([[0, 2], [2, 3]]), 5).tolist() == [1, 0, 2, 1, 0]


@pytest.mark.parametrize("shape, small", [((14, 14), (7, 7)), ((8, 20), (7, 7)), ((3, 9), (3, 7)), ((7, 2), (7, 2))])
def test_pooling_keeps_the_mean_and_small_grids_as_they_are(shape, small):
    grid = np.random.default_rng(0).random(shape)
    assert pooled(grid).shape == small and pooled(grid).mean() == pytest.approx(grid.mean())
    assert shape != small or pooled(grid) == pytest.approx(grid)


def test_a_grid_of_14_is_pooled_in_blocks_of_four_patches():
    grid = np.random.default_rng(0).random((14, 14))
    assert pooled(grid) == pytest.approx(grid.reshape(7, 2, 7, 2).mean(axis=(1, 3)))


def test_box_coverage_weighs_patches_by_their_share_of_the_box():
    # Half of patch 0 and half of patch 4, with patches of 8 px.
    boxes = np.array([[4.0, 0, 12, 8]], np.float32)
    assert box_coverage(np.array([[0]]), boxes, (4, 4), (32, 32)) == pytest.approx([0.5])
    assert box_coverage(np.array([[0, 4]]), boxes, (4, 4), (32, 32)) == pytest.approx([1.0])
    assert box_coverage(np.array([[3, 15]]), boxes, (4, 4), (32, 32)) == pytest.approx([0.0])
