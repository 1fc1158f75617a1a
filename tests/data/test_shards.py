import json
import random
import shutil
import sys

import pytest
from helpers import tiny_config
from PIL import Image

from dyvit_deploy.data.open import check_source, open_calibration, open_images
from dyvit_deploy.data.shards import scan_shard
from dyvit_deploy.errors import DataError, MissingDependency

webdataset = pytest.importorskip("webdataset", reason="shards need webdataset: pip install 'dyvit-deploy[train]'")
SPEC = tiny_config()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Three training shards of 10 images and a validation shard of 7; image i is grey i and of class i % 3."""
    folder = tmp_path_factory.mktemp("shards")
    for split, first, count in (("train", 0, 30), ("val", 100, 7)):
        with webdataset.ShardWriter(str(folder / f"{split}-%04d.tar"), maxcount=10, verbose=0) as shards:
            for i in range(first, first + count):
                shards.write({"__key__": f"{i:06d}", "png": Image.new("RGB", (40, 40), (i, i, i)), "cls": i % 3})
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "shards")


def greys(images, size=4):
    return [int(pixels[0, 0, 0]) for batch in images.batches(size) for pixels in batch.images]


def opened(folder, split="train", limit=None):
    return open_images(f"wds/{folder}", SPEC, split, limit)


def test_shards_are_read_in_order_and_classes_are_named_by_number(folder):
    images = opened(folder)
    assert len(images) == 30 and images.class_names == ("0", "1", "2") and greys(images) == list(range(30))
    [batch] = images.batches(30)
    assert batch.labels.tolist() == [i % 3 for i in range(30)] and batch.names[1].endswith("train-0000.tar/000001")
    assert greys(opened(folder, "val")) == greys(opened(folder, "test")) == list(range(100, 107))
    assert len(open_calibration(f"wds/{folder}", SPEC)) == 30


@pytest.mark.parametrize("world", [1, 2, 3, 40])
@pytest.mark.parametrize("limit", [None, 7])
def test_the_shares_of_all_processes_contain_each_image_once(folder, world, limit):
    images = opened(folder, limit=limit)
    parts = [images.part(rank, world) for rank in range(world)]
    assert sorted(grey for part in parts for grey in greys(part)) == greys(images)
    assert [len(part) for part in parts] == [len(greys(part)) for part in parts]


def test_a_limit_sees_all_shards(folder):
    assert greys(opened(folder, limit=4)) == [0, 9, 19, 29]


def test_names_come_from_a_list_and_counts_from_an_info_file(folder):
    (folder / "classes.txt").write_text("ant\nbee\n")
    split = {"filenames": ["train-0001.tar"], "num_samples": 10, "shard_lengths": [10], "name": "train"}
    (folder / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    images = opened(folder)
    assert images.class_names == ("ant", "bee") and len(images) == 10
    assert greys(images) == [i for i in range(10, 20) if i % 3 < 2]
    assert images.skipped[0].endswith("000011: its class 2 is not one of the 2 classes")


@pytest.mark.parametrize("count", ["1000000000000", "-1", "1e400"])
def test_a_count_that_the_shards_cannot_hold_is_refused_before_memory_is_asked_for(folder, count):
    split = {"filenames": ["train-0001.tar"], "num_samples": "COUNT"}
    (folder / "_info.json").write_text(json.dumps({"splits": {"train": split}}).replace('"COUNT"', count))
    with pytest.raises(DataError, match="num_samples"):
        opened(folder)


def damage(kind, data):
    middle = len(data) // 2 // 512 * 512
    return {"cut in an image": data[:middle + 100], "cut between files": data[:middle], "empty": b"",
            "garbage": data[:middle] + random.Random(0).randbytes(4096) + data[middle + 4096:]}[kind]


@pytest.mark.parametrize("kind", ["cut in an image", "cut between files", "empty", "garbage"])
def test_a_damaged_shard_is_named_and_the_others_are_read(folder, kind):
    shard = folder / "train-0001.tar"
    shard.write_bytes(damage(kind, shard.read_bytes()))
    images = opened(folder)
    found = greys(images)
    assert found[:10] == list(range(10)) and found[-10:] == list(range(20, 30)) and len(found) < 30
    assert any(line.startswith(f"{shard}: ") and "is lost" in line for line in images.skipped)
    first, second = (images.part(rank, 2) for rank in range(2))
    assert sorted(greys(first) + greys(second)) == found
    assert not any("is lost" in line for line in second.skipped)
    assert sorted(label for _, label in images.stream(0, 0, 1)) == sorted(i % 3 for i in found)


def test_images_and_labels_that_cannot_be_read_are_named(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "val-0.tar")) as shard:
        good = Image.new("RGB", (40, 40))
        for key, parts in {"a": {"png": good, "cls": 0}, "b": {"jpg": b"no jpeg", "cls": 0}, "c": {"png": good},
                           "d": {"txt": "x", "cls": 0}}.items():
            shard.write({"__key__": key} | parts)
    images = opened(tmp_path, "val")
    assert len(greys(images)) == 1
    assert [line.split("val-0.tar/")[1] for line in images.skipped] == [
        "b: it is not an image of a known format", "c: there is no .cls file",
        "d: there is no .jpg, .jpeg, .png, .webp, .bmp, .tif, .tiff, .gif, .ppm, .pgm or .pbm file"]
    assert len(list(images.stream(0, 0, 1))) == 1


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_streams_of_all_processes_give_each_image_once(folder, world):
    images = opened(folder)
    seen = [image.getpixel((0, 0))[0] for rank in range(world) for image, _ in images.stream(3, rank, world)]
    assert sorted(seen) == list(range(30))


def test_streams_are_drawn_by_epoch_and_shared_by_workers(folder):
    torch_data = pytest.importorskip("torch.utils.data")
    images = opened(folder)

    class Stream(torch_data.IterableDataset):
        def __iter__(self):
            return (image.getpixel((0, 0))[0] for image, _ in images.stream(1, 0, 1))

    def once(epoch):
        return [image.getpixel((0, 0))[0] for image, _ in images.stream(epoch, 0, 1)]
    assert once(0) == once(0) != once(1)
    assert sorted(torch_data.DataLoader(Stream(), batch_size=None, num_workers=2)) == list(range(30))


def test_a_scan_counts_images_and_finds_the_largest_label_of_a_shard(folder):
    shard = scan_shard(folder / "val-0000.tar")
    assert shard.images == 7 and shard.largest[0] == 2 and shard.damage is None


@pytest.mark.parametrize("number", [b"300000000", b"9" * 5000])
def test_a_class_number_that_no_data_set_has_is_named_at_once(tmp_path, number):
    with webdataset.TarWriter(str(tmp_path / "test-0.tar")) as shard:
        shard.write({"__key__": "a", "png": Image.new("RGB", (40, 40)), "cls": 3})
        shard.write({"__key__": "b", "png": Image.new("RGB", (40, 40)), "cls": number})
    with pytest.raises(DataError, match=r"test-0.tar/b.cls has the class number (3|9)\d+, .* correct it"):
        opened(tmp_path, "test")


def test_hidden_shards_are_not_read(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "test-0.tar")) as shard:
        shard.write({"__key__": "a", "png": Image.new("RGB", (40, 40)), "cls": 0})
    (tmp_path / "._test-0.tar").write_bytes(b"Mac OS X")
    images = opened(tmp_path, "test")
    assert len(images) == len(greys(images)) == 1 and not images.skipped


def unlabelled(folder):
    for path in folder.glob("*.tar"):
        path.unlink()
    with webdataset.TarWriter(str(folder / "val-0.tar")) as shard:
        shard.write({"__key__": "a", "png": Image.new("RGB", (4, 4))})


@pytest.mark.parametrize("spoil, split, message", [
    (lambda f: [p.unlink() for p in f.glob("train*")], "train", "no train shards; name them train-0000.tar"),
    (lambda f: (f / "val-0000.tar").write_bytes(b""), "val", "hold no images: no readable tar file"),
    (unlabelled, "val", "no labels; put the class number"),
    (lambda f: (f / "info.json").write_text("[]"), "val", "not timm's description"),
    (lambda f: (f / "info.json").write_text('{"splits": {"val": {"filenames": ["x.tar"], "num_samples": 2}}}'), "val",
     "x.tar is missing"),
])
def test_unusable_shards_are_refused(folder, spoil, split, message):
    spoil(folder)
    with pytest.raises(DataError, match=message):
        opened(folder, split)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="neither an image folder nor a data set"):
        check_source(f"wds/{tmp_path}/none")


def test_a_missing_library_is_named_with_its_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(MissingDependency, match=r"dyvit-deploy\[train\]"):
        opened(folder)
