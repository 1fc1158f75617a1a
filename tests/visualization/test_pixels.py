"""Pixels of a figure: the fade of the paper, outlines, and differences that are visible without colour."""
import numpy as np
import pytest

from dyvit_deploy.visualization.pixels import coloured, differing, enlarged, faded, outlined

KEPT = np.array([[True, False], [False, True]])
# A grid of 2 x 2 patches of 4 x 6 pixels.
IMAGE = np.random.default_rng(0).integers(0, 200, (8, 12, 3), dtype=np.uint8)


def patches(image):
    return image.reshape(2, 4, 2, 6, 3).swapaxes(1, 2)                            # [rows, columns, 4, 6, 3]


def test_dropped_patches_are_a_fifth_of_the_pixel_and_four_fifths_white():
    before, after = patches(IMAGE), patches(faded(IMAGE, KEPT))
    assert np.array_equal(after[KEPT], before[KEPT])
    assert np.array_equal(after[~KEPT], (0.2 * before[~KEPT] + 0.8 * 255).round())


@pytest.mark.parametrize("kept", [np.ones((2, 2), bool), np.zeros((2, 2), bool)])
def test_all_kept_is_the_image_and_none_kept_has_no_outline(kept):
    assert np.array_equal(faded(IMAGE, kept), IMAGE) == kept.all()
    orange = (outlined(IMAGE, kept) == (230, 159, 0)).all(axis=2)
    assert orange.any() == kept.any()


def test_an_outline_is_inside_the_kept_area_and_the_rest_is_darker():
    large = enlarged(IMAGE, 80)
    result = outlined(large, KEPT)
    kept = KEPT.repeat(40, 0).repeat(60, 1)
    assert ((result == (230, 159, 0)).all(axis=2) & ~kept).sum() == 0
    assert np.array_equal(result[~kept], (0.45 * large[~kept]).round())


def test_enlarging_repeats_whole_pixels():
    large = enlarged(IMAGE, 30)
    assert large.shape == (32, 48, 3) and np.array_equal(large[::4, ::4], IMAGE)
    assert enlarged(IMAGE, 8) is not None and enlarged(IMAGE, 8).shape == IMAGE.shape


def test_what_only_one_keeps_has_a_colour_and_only_the_second_has_stripes():
    first, second = np.array([[True, True], [False, False]]), np.array([[True, False], [True, False]])
    flat = np.full((64, 64, 3), 90, np.uint8)
    both, mine, theirs, none = (differing(flat, first, second)[y:y + 32, x:x + 32] for y in (0, 32) for x in (0, 32))
    assert (both == 90).all() and (mine == (230, 159, 0)).all() and (none == round(0.2 * 90 + 0.8 * 255)).all()
    assert len(np.unique(theirs.reshape(-1, 3), axis=0)) == 2


def test_scores_colour_what_is_kept_and_fade_the_rest():
    red = np.zeros((2, 2, 3))
    red[..., 0] = 1
    result = patches(coloured(IMAGE, KEPT, red))
    assert (result[KEPT][..., 0] > result[KEPT][..., 1]).all() and (result[~KEPT] >= 204).all()
