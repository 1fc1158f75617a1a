import contextlib
import io
import os
import tarfile

import pytest
from helpers import photo_folder
from PIL import Image

from dyvit_deploy.data.listing import count_images, list_images
from dyvit_deploy.errors import DataError


def png(grey=0, side=4):
    file = io.BytesIO()
    Image.new("RGB", (side, side), (grey, grey, grey)).save(file, "png")
    return file.getvalue()


def write_shard(path, files):
    """A .tar of (name, bytes), made without webdataset."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def listed(*sources):
    damage = []
    return list(list_images([str(source) for source in sources], damage)), damage


def test_folders_are_listed_recursively_sorted_by_path_ignoring_other_files(tmp_path):
    photo_folder(tmp_path / "b", 3, classes=2)
    photo_folder(tmp_path, 2)
    (tmp_path / "a.txt").write_text("no image")
    os.symlink(tmp_path / "gone.png", tmp_path / "c.png")
    os.symlink(tmp_path, tmp_path / "b" / "loop")
    names = [place.name for place in listed(tmp_path)[0]]
    assert names == sorted(names) and [name.removeprefix(f"{tmp_path}/") for name in names] == [
        "000.png", "001.png", "b/class0/000.png", "b/class0/002.png", "b/class1/001.png", "c.png"]
    assert count_images([str(tmp_path)]) == 6


def test_a_circular_link_is_an_image_with_an_error(tmp_path):
    photo_folder(tmp_path, 1)
    os.symlink("x.jpg", tmp_path / "x.jpg")
    os.symlink("circle", tmp_path / "circle")
    places = listed(tmp_path)[0]
    assert [place.name.split("/")[-1] for place in places] == ["000.png", "x.jpg"] and places[1].stamp == ""
    with pytest.raises(OSError, match="symbolic links"):
        places[1].read()
    with pytest.raises(DataError, match="neither an image"):
        count_images([str(tmp_path / "x.jpg")])


def test_a_forbidden_entry_is_an_image_with_an_error_or_a_refused_folder(tmp_path, monkeypatch):
    photo_folder(tmp_path, 1)

    # Root may read everything, so the error is simulated.
    class Forbidden:
        path, name = str(tmp_path / "secret"), "secret.png"

        def is_dir(self):
            raise PermissionError(13, "Permission denied")
    real, entry = os.scandir, Forbidden()

    @contextlib.contextmanager
    def scandir(folder):
        with real(folder) as entries:
            yield [*entries, entry]
    monkeypatch.setattr(os, "scandir", scandir)
    assert count_images([str(tmp_path)]) == 2
    entry.name = "secret"
    with pytest.raises(DataError, match=r"secret cannot be listed .Permission denied"):
        count_images([str(tmp_path)])


def test_sources_keep_their_order_and_an_explicit_file_is_listed_whatever_its_suffix(tmp_path):
    photo_folder(tmp_path / "many", 2)
    odd = tmp_path / "photo.heic"
    odd.write_bytes(png())
    places, _ = listed(odd, tmp_path / "many", odd)
    assert [place.name.split("/")[-1] for place in places] == ["photo.heic", "000.png", "001.png", "photo.heic"]
    assert places[0].read()[0].size == (4, 4)


def test_a_name_that_is_not_valid_unicode_is_escaped_and_its_image_read(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.png"
    with open(path, "wb") as file:
        file.write(png())
    [place] = listed(tmp_path)[0]
    assert place.name.endswith("\\udcff.png") and place.read()[0].size == (4, 4)


def test_all_shards_are_listed_and_each_image_is_read_independently(tmp_path):
    pytest.importorskip("webdataset", reason="shards need webdataset: pip install 'dyvit-deploy[train]'")
    write_shard(tmp_path / "wds/train-0.tar", [("a.json", b"{}"), ("a.png", png(1)), ("b.PNG", png(2))])
    write_shard(tmp_path / "wds/val/0.tar", [("c.jpg", b"no image"), ("d.txt", b"x"), ("e.png", png(3))])
    places, damage = listed(f"wds/{tmp_path}/wds")
    assert [place.name.removeprefix(f"{tmp_path}/wds/") for place in places] == [
        "train-0.tar/a", "train-0.tar/b", "val/0.tar/c", "val/0.tar/d", "val/0.tar/e"] and not damage
    assert [places[i].read()[0].getpixel((0, 0))[0] for i in (4, 1, 0)] == [3, 2, 1]
    with pytest.raises(ValueError, match="not an image of a known format"):
        places[2].read()
    with pytest.raises(ValueError, match=r"there is no \.jpg"):
        places[3].read()
    assert listed(tmp_path / "wds/train-0.tar")[0] == places[:2]


def test_a_shard_that_ends_early_lists_its_readable_images_and_is_reported(tmp_path):
    pytest.importorskip("webdataset", reason="shards need webdataset: pip install 'dyvit-deploy[train]'")
    shard = write_shard(tmp_path / "0.tar", [(f"{i}.png", png(i)) for i in range(4)])
    shard.write_bytes(shard.read_bytes()[:2 * 1024 + 600])
    places, damage = listed(f"wds/{tmp_path}")
    assert len(places) == 3 and damage == [f"{shard}: unexpected end of data; what comes after it is lost"]
    assert places[1].read()[0].size == (4, 4)


@pytest.mark.parametrize("source, message", [
    ("nowhere", "neither an image, a folder nor a .tar shard"), ("empty", "holds no images"),
    ("shards", "write wds/"), ("wds/empty", "no images in .tar shards"), ("hfds/x", "save its images"),
    ("wds/empty/a.txt", "is not a .tar shard"), ("packed.tar", "without compression")])
def test_a_source_without_images_is_refused_with_the_reason(tmp_path, monkeypatch, source, message):
    pytest.importorskip("webdataset", reason="shards need webdataset: pip install 'dyvit-deploy[train]'")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.txt").touch()
    write_shard(tmp_path / "shards/0.tar", [("a.png", png())])
    with tarfile.open("packed.tar", "w:gz") as tar:
        tar.add("empty/a.txt")
    with pytest.raises(DataError, match=message):
        count_images([source])
