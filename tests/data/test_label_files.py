import json

import pytest

from dyvit_deploy.data.label_files import read_class_map, read_labels
from dyvit_deploy.errors import ArtifactError, DataError

# ImageNet's two files: the list of synsets, and Keras' class index.
SYNSETS = "n01440764 tench, Tinca tinca\nn01443537\tgoldfish, Carassius auratus\nn01484850 great white shark\n"
INDEX = {"0": ["n01440764", "tench"], "2": ["n01484850", "great_white_shark"], "1": ["n01443537", "goldfish"]}


def written(folder, content, name=None):
    path = folder / (name or ("labels.txt" if isinstance(content, (str, bytes)) else "labels.json"))
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("content, names", [
    ("cat\ndog\nbird", ("cat", "dog", "bird")),
    (b"\xef\xbb\xbfcat\r\n great white \r\nb\xc3\xa4r\r\n\r\n", ("cat", "great white", "bär")),
    (["cat", "cat", "[x]"], ("cat", "cat", "[x]")),
    ({"0": "cat", "10": "k", **{str(i): "x" for i in range(1, 10)}}, ("cat", *"x" * 9, "k")),
    (INDEX, ("tench", "goldfish", "great_white_shark")),
    (SYNSETS, ("tench, Tinca tinca", "goldfish, Carassius auratus", "great white shark")),
    ("n01440764\nn01443537", ("n01440764", "n01443537")),
])
def test_the_names_of_classes_are_read_from_every_usual_form(tmp_path, content, names):
    assert read_labels(written(tmp_path, content), len(names)) == names


@pytest.mark.parametrize("content, message", [
    ("cat\ndog", "has 2 names, and the model has 3 classes"),
    ("cat\n\ndog", "has no name for class 1"),
    ({"0": "cat", "1": 7, "2": "x"}, "has no name for class 1"),
    (["a", "b\nc", "d"], "name of class 1 .* has a control character"),
    (["a", "\x1b[31m", "d"], "control character"), (["a", "\ud800", "d"], "not Unicode"),
    (b"\xff\xfea\x00", "not text in UTF-8"),
    ({"1": "a", "2": "b", "3": "c"}, "not the class numbers 0 to 2"),
    ({"cat": 0, "dog": 1}, "not the class numbers"),
    ({"a": 0}, "not the class numbers"),
])
def test_names_that_do_not_fit_the_model_are_refused_with_the_reason(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_labels(written(tmp_path, content), 3)


@pytest.mark.parametrize("text, message", [
    ("{", "cannot be read as JSON"), ("[" * 100_000, "cannot be read as JSON"), ("7", "neither a list nor an object"),
    ('{"0": "a", "0": "b"}', "'0' occurs twice"), ("x" * ((8 << 20) + 1), "larger than 8 MiB")])
def test_a_file_that_is_not_a_list_of_classes_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_labels(written(tmp_path, text, "labels.json"), 3)


def test_a_missing_file_is_named(tmp_path):
    for read in (lambda path: read_labels(path, 3), lambda path: read_class_map(path, ["a"])):
        with pytest.raises(ArtifactError, match=r"gone.txt does not exist"):
            read(tmp_path / "gone.txt")


@pytest.mark.parametrize("content", [
    "n01484850 2\nn01440764 0", "n01484850,2\n n01440764 , 0\n", {"n01484850": 2, "n01440764": "0", "other": 900},
    SYNSETS, INDEX])
def test_class_folders_are_mapped_by_every_usual_form(tmp_path, content):
    assert read_class_map(written(tmp_path, content), ["n01440764", "n01484850"]).tolist() == [0, 2]


def test_the_names_of_mapped_folders_may_have_spaces_commas_and_digits(tmp_path):
    path = written(tmp_path, "great white 2 3\na,b,4\n7 5")
    assert read_class_map(path, ["7", "a,b", "great white 2"]).tolist() == [5, 4, 3]


@pytest.mark.parametrize("content, message", [
    ("cat 1", "no class for 1 of the 2 class folders; the first is 'dog'"), ("cat 1\ndog", "Line 2 of .*FOLDER 207"),
    ("cat 1\ndog 2\ncat 3", "contradicts itself: 'cat' occurs twice"), ({"cat": -1, "dog": 1}, "gives 'cat' the class"),
    ({"cat": 1.5, "dog": 1}, "class '1.5', which is not"), ({"cat": True, "dog": 1}, "class 'True'"),
    ({"cat": 10**30, "dog": 1}, "is not a class number"), (["cat", "dog"], "JSON list; a class map is an object"),
    ({"0": ["n01440764", "tench"], "1": ["n01440764", "tench"]}, "contradicts itself: 'n01440764' occurs twice"),
    ('{"cat": NaN, "dog": 1}', "Line 1 of")])
def test_a_class_map_that_leaves_a_doubt_is_refused_by_name(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_class_map(written(tmp_path, content), ["cat", "dog"])
