import pytest
from helpers import photo_folder, tiny_config

from dyvit_deploy.data.images import NoiseImages
from dyvit_deploy.data.labels import class_numbers, require_labels
from dyvit_deploy.data.open import open_images
from dyvit_deploy.errors import DataError


def images(folder, classes):
    return open_images(str(photo_folder(folder, classes, classes=classes)), tiny_config())


def test_classes_are_matched_by_name_and_keep_their_numbers_without_known_classes(tmp_path):
    three = images(tmp_path, 3)
    assert class_numbers(three, ("class2", "other", "class0", "class1")).tolist() == [2, 3, 0]
    assert class_numbers(three, None).tolist() == [0, 1, 2]


@pytest.mark.parametrize("known, hint", [(("class0", "class1"), "Did you mean 'class1'"),
                                         (("class0", "CLASS2", "class1"), "Did you mean 'CLASS2'"),
                                         (tuple(map(str, range(1000))), "Choose one of: 0, 1, 2,")])
def test_an_unknown_class_is_named_with_the_owner_of_the_known_ones(tmp_path, known, hint):
    with pytest.raises(DataError, match=f"training split does not know the class .*{hint}"):
        class_numbers(images(tmp_path, 3), known, "training split")


def test_images_without_labels_are_refused():
    with pytest.raises(DataError, match="noise has no labels"):
        require_labels(NoiseImages(tiny_config(), 2))


def test_a_name_that_the_model_has_twice_is_refused_only_where_it_is_needed(tmp_path):
    two = images(tmp_path, 2)
    assert class_numbers(two, ("crane", "class1", "crane", "class0")).tolist() == [3, 1]
    with pytest.raises(DataError, match=r"several classes with the name 'class1' .*--class-map FILE"):
        class_numbers(two, ("class1", "class1", "class0"))
