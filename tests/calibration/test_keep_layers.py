import math
from fractions import Fraction

import numpy as np
import pytest
from helpers import fake_runner, photo_folder

from dyvit_deploy.calibration.keep_layers import Drop, DropMeter, fewest_kept
from dyvit_deploy.data.folder import FolderImages
from dyvit_deploy.errors import DataError
from dyvit_deploy.runners.base import ForeignImages
from dyvit_deploy.settings.preprocessing import Preprocess
from dyvit_deploy.statistics.estimates import PairedLoss, Proportion

NAMES = [f"layer{i}" for i in range(20)]


def drop_of(points, kept, allowed=0.5, images=1000):
    return Drop(points, allowed, images, True, tuple(kept))


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 5, 8, 13, 20])
def test_the_fewest_layers_are_found_in_few_tries(needed):
    tries = []

    def measure(keep):
        tries.append(len(keep))
        return drop_of(0.1 if len(keep) >= needed else 2.0, keep)
    found = fewest_kept(measure, NAMES)
    assert found.kept == tuple(NAMES[:needed]) and found.points == 0.1
    assert len(tries) <= 11 and len(set(tries)) == len(tries)


def test_all_are_kept_when_even_that_does_not_suffice():
    for names in (NAMES, []):
        assert fewest_kept(lambda keep: drop_of(3.0, keep), names) == drop_of(3.0, names)
    assert drop_of(3.0, NAMES).failures[0].startswith("top-1 falls by 3.00 points where 0.5")
    unlabelled = Drop(3.0, 0.5, 100, False, tuple(NAMES))
    assert unlabelled.failures[0].startswith("the best class changes for 3.00 in 100 images where 0.5")


@pytest.mark.parametrize("allowed", [0, 0.1, 0.3, 0.5, 0.7, 1, 1.5, 2.9])
def test_a_drop_is_counted_in_images(allowed):
    """With the rounding errors of a difference of two shares."""
    for n in (7, 100, 300, 500, 700, 1000):
        bound = Fraction(str(allowed)) * n / 100
        for lost in {math.floor(bound), math.floor(bound) + 1, -1}:
            for right in range(max(lost, 0), n + 1, 7):
                points = 100 * (right / n - (right - lost) / n)
                assert bool(drop_of(points, (), allowed, n).failures) == (lost > bound), (n, right, lost)


def images(folder, classes):
    return FolderImages(photo_folder(folder, 8, 8, classes), ForeignImages((4, 4), Preprocess()))


def answers(classes):
    return fake_runner(np.eye(2)[np.asarray(classes)])


def test_a_drop_is_of_top1_where_there_are_labels(tmp_path, caplog):
    labelled = images(tmp_path, 2)                      # four of class0, then four of class1
    meter = DropMeter(answers([0, 0, 0, 0, 1, 1, 1, 0]), labelled, 50)
    assert [record.getMessage().split(";")[0] for record in caplog.records] == ["fake has no class names"]
    lost = meter.drop(answers([0, 0, 0, 0, 1, 1, 0, 0]), NAMES[:2])
    assert lost.labelled and lost.points == 12.5 and lost.kept == tuple(NAMES[:2])
    assert meter.drop(answers([0, 0, 0, 0, 1, 1, 1, 1])).points == -12.5


def test_a_drop_knows_how_sure_it_is_from_the_images_that_differ(tmp_path):
    meter = DropMeter(answers([0, 0, 0, 0, 1, 1, 1, 0]), images(tmp_path, 2), 20)
    drop = meter.drop(answers([0, 0, 0, 1, 1, 1, 1, 1]))
    expected = PairedLoss(8, 1, 1)
    assert drop.points == 0 and drop.ci95 == pytest.approx([100 * end for end in expected.interval])
    # Accepted, although 8 images do not show that no more than 20 points are lost.
    assert not drop.failures and drop.doubt == expected.doubt(Fraction(1, 5)) != ""
    assert "8 images, 95 % interval -" in drop.basis


def test_without_labels_it_is_how_many_change(tmp_path):
    meter = DropMeter(answers([0, 0, 0, 0, 1, 1, 1, 0]), images(tmp_path, 0), 50)
    drop = meter.drop(answers([0, 0, 0, 0, 1, 1, 1, 1]))
    assert not drop.labelled and drop.points == 12.5
    assert drop.ci95 == pytest.approx([100 * end for end in Proportion(8, 1).interval])


def test_a_drop_finer_than_one_image_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"cannot be seen on 8 images .* give at least 200"):
        DropMeter(answers([0] * 8), images(tmp_path, 0), 0.5)
