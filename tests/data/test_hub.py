import sys

import pytest
from helpers import photo_folder, tiny_config

from dyvit_deploy.data.open import open_gate, open_images
from dyvit_deploy.errors import DataError, MissingDependency

datasets = pytest.importorskip("datasets", reason="these need datasets: pip install 'dyvit-deploy[train]'")
hub = pytest.importorskip("huggingface_hub")
SPEC = tiny_config()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def names(images):
    return [name for batch in images.batches(4) for name in batch.names]


def parquet(folder, split="train", **columns):
    kinds = {"image": datasets.Image()} if "image" in columns else {}
    rows = datasets.Dataset.from_dict(columns)
    for column, kind in kinds.items():
        rows = rows.cast_column(column, kind)
    rows.to_parquet(str(folder / f"{split}-00000.parquet"))
    return folder


def test_a_local_folder_gives_splits_classes_and_samples(tmp_path):
    for split, count in (("train", 6), ("validation", 5)):
        photo_folder(tmp_path / split, count, classes=2)
    images = open_images(f"hfds/{tmp_path}", SPEC, "train")
    assert len(images) == 6 and images.class_names == ("class0", "class1")
    assert [images.sample(i, 0)[1] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    image, _ = images.sample(0, 0)
    assert image.size == (40, 40) and image.mode == "RGB" and "class0" in images.name_of(0)
    val = open_images(f"hfds/{tmp_path}", SPEC, "test")
    assert len(val) == 5 and open_gate(f"hfds/{tmp_path}", SPEC).name == val.name
    assert sorted(name for rank in range(2) for name in names(val.part(rank, 2))) == sorted(names(val))


def test_rows_without_an_image_or_a_label_are_skipped_and_recorded(tmp_path):
    photos = [str(path) for path in sorted(photo_folder(tmp_path / "photos", 4).iterdir())]
    (tmp_path / "broken.png").write_bytes(b"no png")
    (tmp_path / "rows").mkdir()
    source = parquet(tmp_path / "rows", image=[*photos, None, str(tmp_path / "broken.png")], label=[0, 3, 1, -1, 0, 0])
    images = open_images(f"hfds/{source}", SPEC, "train")
    assert images.class_names == ("0", "1", "2", "3") and len(names(images)) == 3
    reasons = ("its class -1 is not one of the 4 classes", "the row has no image",
               "it is not an image of a known format")
    assert [line.endswith(reason) for line, reason in zip(images.skipped, reasons)] == [True] * 3


@pytest.mark.parametrize("columns, message", [
    (dict(text=["a"], label=[0]), "no images: its columns are text, label"),
    (dict(image=[None]), "no labels: its columns are image"),
    (dict(image=[None], label=[-1]), "no labels in this split"),
    (dict(image=[None], label=[300000000]), "column label .* has the class number 300000000"),
])
def test_unusable_columns_are_refused(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        open_images(f"hfds/{parquet(tmp_path, **columns)}", SPEC, "train")


def test_missing_splits_and_folders_without_data_are_refused(tmp_path):
    photo_folder(tmp_path / "photos/train", 4, classes=2)
    with pytest.raises(DataError, match="no test split, only train"):
        open_images(f"hfds/{tmp_path}/photos", SPEC, "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be loaded"):
        open_images(f"hfds/{tmp_path}/empty", SPEC)


def test_an_unreachable_hub_is_one_sentence_after_one_request(monkeypatch):
    requests = []

    def unreachable(self, name, timeout):
        requests.append(name)
        raise ConnectionError("no route to host")
    monkeypatch.setattr(hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(DataError, match=r"cannot be reached \(no route to host\)"):
        open_images("hfds/someone/photos", SPEC)
    assert requests == ["someone/photos"]


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependency, match=r"dyvit-deploy\[train\]"):
        open_images(f"hfds/{tmp_path}", SPEC)
