import numpy as np
import pytest
from helpers import fake_runner, photo_folder

from dyvit_deploy.calibration.keep_layers import Drop, DropMeter, fewest_kept
from dyvit_deploy.data.folder import FolderImages
from dyvit_deploy.errors import DataError
from dyvit_deploy.runners.base import ForeignImages
from dyvit_deploy.settings.preprocessing import Preprocess

NAMES = [f"layer{i}" for i in range(20)]


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 5, 8, 13, 20])
def test_the_fewest_layers_are_found_in_few_tries(needed):
    tries = []

    def measure(keep):
        tries.append(len(keep))
        return 0.1 if len(keep) >= needed else 2.0
    kept, points = fewest_kept(measure, NAMES, 0.5)
    assert kept == tuple(NAMES[:needed]) and points == 0.1
    assert len(tries) <= 11 and len(set(tries)) == len(tries)


def test_all_are_kept_when_even_that_does_not_suffice():
    assert fewest_kept(lambda keep: 3.0, NAMES, 0.5) == (tuple(NAMES), 3.0)
    assert Drop(3.0, 0.5, 100, True, tuple(NAMES)).failures[0].startswith("top-1 falls by 3.00 points where 0.5")
    unlabelled = Drop(3.0, 0.5, 100, False, tuple(NAMES))
    assert unlabelled.failures[0].startswith("the best class changes for 3.00 in 100 images where 0.5")


def images(folder, classes):
    return FolderImages(photo_folder(folder, 8, 8, classes), ForeignImages((4, 4), Preprocess()))


def answers(classes):
    return fake_runner(np.eye(2)[np.asarray(classes)])


def test_a_drop_is_of_top1_where_there_are_labels(tmp_path, caplog):
    labelled = images(tmp_path, 2)                      # four of class0, then four of class1
    meter = DropMeter(answers([0, 0, 0, 0, 1, 1, 1, 0]), labelled, 50)
    assert meter.labelled
    assert [record.getMessage().split(";")[0] for record in caplog.records] == ["fake has no class names"]
    assert meter.points(answers([0, 0, 0, 0, 1, 1, 0, 0])) == pytest.approx(12.5)
    assert meter.points(answers([0, 0, 0, 0, 1, 1, 1, 1])) == pytest.approx(-12.5)


def test_without_labels_it_is_how_many_change(tmp_path):
    meter = DropMeter(answers([0, 0, 0, 0, 1, 1, 1, 0]), images(tmp_path, 0), 50)
    assert not meter.labelled
    assert meter.points(answers([0, 0, 0, 0, 1, 1, 1, 1])) == pytest.approx(12.5)


def test_a_drop_finer_than_one_image_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"cannot be seen on 8 images .* give at least 200"):
        DropMeter(answers([0] * 8), images(tmp_path, 0), 0.5)
