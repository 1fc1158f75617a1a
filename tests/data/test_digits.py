import numpy as np
import pytest
from helpers import tiny_config

from dyvit_deploy.data.digits import SPLITS, DigitScenes, draw_scene, glyphs
from dyvit_deploy.errors import DataError
from dyvit_deploy.model import zoo

pytest.importorskip("sklearn", reason="the digits need scikit-learn: pip install 'dyvit-deploy[demo]'")


def test_no_digit_is_in_two_splits_and_none_is_lost():
    counts = [len(glyphs(split)[1]) for split in SPLITS]
    assert sum(counts) == 1797 and min(counts) > 50
    edges = sorted(SPLITS.values())
    assert all(before[1] == after[0] for before, after in zip(edges, edges[1:]))


def test_scenes_are_the_same_in_every_run_and_new_in_every_epoch():
    first, again = draw_scene("test", 5), draw_scene("test", 5)
    assert np.array_equal(first[0], again[0]) and first[1:] == again[1:]
    assert not np.array_equal(first[0], draw_scene("test", 5, variant=1)[0])
    assert not np.array_equal(first[0], draw_scene("test", 6)[0])


def test_the_box_has_the_size_of_a_digit_and_is_within_the_scene():
    for index in range(50):
        _, label, (top, left, bottom, right) = draw_scene("train", index)
        assert 0 <= top < bottom <= 64 and 0 <= left < right <= 64
        assert bottom - top <= 32 and right - left <= 32 and 0 <= label <= 9


def test_the_digit_is_brighter_than_the_rest_of_the_scene():
    inside, outside = [], []
    for index in range(100):
        image, _, (top, left, bottom, right) = draw_scene("train", index)
        bright = image.max(axis=2).astype(float)
        mask = np.zeros((64, 64), bool)
        mask[top:bottom, left:right] = True
        inside.append(np.quantile(bright[mask], 0.9))
        outside.append(np.quantile(bright[~mask], 0.9))
    assert np.mean(inside) > np.mean(outside) + 50


def test_batches_cover_the_set_with_every_label():
    batches = list(DigitScenes(zoo.get("digits-s"), "test", 130).batches(50))
    assert [len(b.images) for b in batches] == [50, 50, 30]
    assert batches[0].images.dtype == np.uint8 and batches[0].images.shape[1:] == (64, 64, 3)
    assert set(np.concatenate([b.labels for b in batches])) == set(range(10))


def test_other_input_sizes_scale_scene_and_box():
    [small] = DigitScenes(zoo.get("digits-s"), "test", 2).batches(2)
    [large] = DigitScenes(tiny_config(image_size=(128, 32)), "test", 2).batches(2)
    assert large.images.shape == (2, 128, 32, 3)
    assert np.allclose(large.boxes, small.boxes * [2, 0.5, 2, 0.5])


def test_training_samples_change_every_epoch_and_differ_from_evaluation():
    images = DigitScenes(zoo.get("digits-s"), "train", 4)
    [batch] = images.batches(4)
    seen = [batch.images[2], *(np.asarray(images.sample(2, epoch)[0]) for epoch in (0, 1))]
    assert len({pixels.tobytes() for pixels in seen}) == 3
    assert np.array_equal(seen[1], np.asarray(images.sample(2, 0)[0])) and images.name_of(2) == batch.names[2]
    assert 0 <= images.sample(2, 0)[1] <= 9


@pytest.mark.parametrize("world", [2, 3])
def test_the_shares_of_all_processes_make_up_the_whole_set(world):
    images = DigitScenes(zoo.get("digits-s"), "test", 7)
    parts = [next(images.part(rank, world).batches(7)) for rank in range(world)]
    [whole] = images.batches(7)
    order = np.argsort([int(name.split()[1]) for part in parts for name in part.names])
    assert np.array_equal(np.concatenate([part.images for part in parts])[order], whole.images)
    assert np.array_equal(np.concatenate([part.labels for part in parts])[order], whole.labels)


def test_an_unknown_split_is_refused():
    with pytest.raises(DataError, match="Did you mean 'train'"):
        DigitScenes(zoo.get("digits-s"), "trian")
