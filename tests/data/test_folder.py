import numpy as np
import pytest
from helpers import tiny_config
from PIL import Image

from dyvit_deploy.data.folder import in_order
from dyvit_deploy.data.images import NoiseImages
from dyvit_deploy.data.listing import list_images
from dyvit_deploy.data.open import open_images
from dyvit_deploy.data.reading import decode
from dyvit_deploy.errors import DataError
from dyvit_deploy.settings.notes import LOGGER


def picture(path, size=(40, 50), mode="RGB", value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def test_flat_folders_have_no_labels(tmp_path):
    for name in ("b.jpg", "a.png"):
        picture(tmp_path / name)
    images = open_images(str(tmp_path), tiny_config())
    [batch] = images.batches(8)
    assert images.class_names is None and batch.labels is None
    assert [n.rsplit("/", 1)[1] for n in batch.names] == ["a.png", "b.jpg"]
    assert batch.images.shape == (2, 32, 32, 3) and batch.images.dtype == np.uint8


def test_subfolders_are_classes_in_alphabetical_order(tmp_path):
    for name in ("dog/1.png", "cat/1.png", "cat/2.png"):
        picture(tmp_path / name)
    images = open_images(str(tmp_path), tiny_config())
    [batch] = images.batches(8)
    assert images.class_names == ("cat", "dog") and batch.labels.tolist() == [0, 0, 1]


def test_a_limit_still_sees_every_class(tmp_path):
    for label in "abc":
        for i in range(10):
            picture(tmp_path / label / f"{i}.png", size=(8, 8))
    [batch] = open_images(str(tmp_path), tiny_config(), limit=6).batches(8)
    assert set(batch.labels.tolist()) == {0, 1, 2} and len(batch.labels) == 6


@pytest.mark.parametrize("world", [2, 3, 9])
def test_the_shares_of_all_processes_contain_each_image_once(tmp_path, world):
    for i in range(7):
        picture(tmp_path / "ab"[i % 2] / f"{i}.png")
    (tmp_path / "a" / "broken.png").touch()
    images = open_images(str(tmp_path), tiny_config())
    def read(part):
        return [name for batch in part.batches(2) for name in batch.names], part.skipped
    parts = [read(images.part(rank, world)) for rank in range(world)]
    names, skipped = read(images)
    assert sorted(name for found, _ in parts for name in found) == sorted(names)
    assert [line for _, lines in parts for line in lines] == skipped


def test_training_reads_single_images_with_labels(tmp_path):
    for name in ("dog/1.png", "cat/1.png", "cat/2.png"):
        picture(tmp_path / "train" / name, mode="L")
    images = open_images(str(tmp_path), tiny_config(), "train")
    image, label = images.sample(2, epoch=0)
    assert image.size == (40, 50) and image.mode == "RGB" and label == 1
    assert images.name_of(2).endswith("dog/1.png") and len(images) == 3
    with pytest.raises(DataError, match="has no labels"):
        open_images(str(tmp_path / "train" / "cat"), tiny_config()).sample(0, 0)


def test_a_class_without_images_is_named(tmp_path):
    picture(tmp_path / "train" / "ant" / "1.png")
    (tmp_path / "train" / "bee").mkdir()
    with pytest.raises(DataError, match="bee is a class without images; fill it, or remove it"):
        open_images(str(tmp_path), tiny_config(), "train")
    (tmp_path / "train" / "bee").rename(tmp_path / "train" / ".thumbnails")
    assert open_images(str(tmp_path), tiny_config(), "train").class_names == ("ant",)


def test_the_validation_split_may_be_spelled_out(tmp_path):
    for split in ("train", "validation"):
        picture(tmp_path / split / "ant" / f"{split}.png")
    for split in ("val", "test"):
        [batch] = open_images(str(tmp_path), tiny_config(), split).batches(8)
        assert batch.names[0].endswith("validation.png")


def test_a_split_is_its_subfolder_and_test_falls_back_to_val(tmp_path):
    for name in ("train/a/1.png", "train/b/1.png", "val/a/2.png", "val/b/2.png"):
        picture(tmp_path / name)
    for split, stem in (("train", "1"), ("val", "2"), ("test", "2")):
        [batch] = open_images(str(tmp_path), tiny_config(), split).batches(8)
        assert all(name.endswith(f"{stem}.png") for name in batch.names)


def test_broken_images_are_named_skipped_and_counted(tmp_path):
    picture(tmp_path / "good.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff not a jpeg")
    (tmp_path / "empty.png").touch()
    images = open_images(str(tmp_path), tiny_config())
    [batch] = images.batches(8)
    assert len(batch.images) == 1
    assert [line.split(":")[0].rsplit("/", 1)[1] for line in images.skipped] == ["broken.jpg", "empty.png"]


@pytest.mark.parametrize("mode, value", [("L", 9), ("RGBA", (1, 2, 3, 4)), ("CMYK", (1, 2, 3, 4)), ("P", 3),
                                         ("I;16", 5000)])
def test_odd_modes_become_rgb(tmp_path, mode, value):
    picture(tmp_path / ("x.tiff" if mode in ("CMYK", "I;16") else "x.png"), mode=mode, value=value)
    [batch] = open_images(str(tmp_path), tiny_config()).batches(1)
    assert batch.images.shape == (1, 32, 32, 3)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    grey = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    for name, pixels in (("eight", grey), ("sixteen", grey.astype(np.uint16) * 257)):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / f"x.{suffix}")
    [eight], [sixteen] = (open_images(str(tmp_path / n), tiny_config()).batches(1) for n in ("eight", "sixteen"))
    assert np.array_equal(eight.images, sixteen.images)


def test_an_image_of_too_many_pixels_says_how_many_are_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    picture(tmp_path / "large.png")
    with pytest.raises(DataError, match="more than the 178,956,970 pixels that are allowed"):
        list(open_images(str(tmp_path), tiny_config()).batches(1))


@pytest.mark.parametrize("prepare, message", [
    (lambda p: None, "holds no images"),
    (lambda p: (p / "notes.txt").write_text("x"), "holds no images"),
    (lambda p: (picture(p / "a.png"), picture(p / "cat" / "b.png")), "beside and inside"),
])
def test_unusable_folders_are_refused(tmp_path, prepare, message):
    prepare(tmp_path)
    with pytest.raises(DataError, match=message):
        open_images(str(tmp_path), tiny_config())


def test_a_folder_with_only_broken_images_is_refused_naming_one(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"None of the 1 images .*broken\.jpg"):
        list(open_images(str(tmp_path), tiny_config()).batches(2))


def test_unknown_sources_are_refused_with_the_nearest_name():
    with pytest.raises(DataError, match="Did you mean 'digits'"):
        open_images("digist", tiny_config())


def test_noise_is_reproducible_and_has_the_models_input_size():
    one, two = (next(iter(NoiseImages(tiny_config(), 5).batches(8))) for _ in range(2))
    assert np.array_equal(one.images, two.images) and one.images.shape == (5, 32, 32, 3)


def notes(caplog):
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


@pytest.mark.parametrize("names", [[str(i) for i in range(12)], [f"{i:02d}" for i in range(12)]])
def test_folders_named_0_to_n_are_classes_by_number(tmp_path, names):
    for value, name in enumerate(names):
        picture(tmp_path / name / "a.png", value=(value, 0, 0))
    images = open_images(str(tmp_path), tiny_config())
    [batch] = images.batches(12)
    assert images.class_names == tuple(names)
    assert batch.labels.tolist() == batch.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("names", [("1", "10", "2"), ("0", "00", "1"), ("0", "1", "10", "cat"), ("\u0660", "\u0661")])
def test_other_folders_are_classes_in_alphabetical_order(names):
    assert in_order(names) == sorted(names)


def test_hidden_files_and_folders_are_left_out_and_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    for name in ("cat/1.png", "dog/1.png", ".ipynb_checkpoints/1.png", "cat/._1.png"):
        picture(tmp_path / name)
    images = open_images(str(tmp_path), tiny_config())
    assert images.class_names == ("cat", "dog") and len(images) == 2
    assert notes(caplog) == [f"2 hidden files and folders in {tmp_path} were left out."]


def test_files_that_are_skipped_for_their_suffix_are_counted_by_it(tmp_path, caplog):
    caplog.set_level("INFO")
    picture(tmp_path / "a" / "1.PNG")
    for name in ("1.txt", "2.TXT", "3.heic", "README", "x.\x1b[31m"):
        (tmp_path / "a" / name).touch()
    assert len(open_images(str(tmp_path), tiny_config())) == 1
    assert notes(caplog) == [f"Files in {tmp_path} without the suffix of an image were skipped: "
                             "2 .txt, 2 others, 1 .heic."]


def test_nothing_is_said_of_a_folder_with_nothing_but_images(tmp_path, caplog):
    caplog.set_level("INFO")
    picture(tmp_path / "a" / "1.png")
    open_images(str(tmp_path), tiny_config())
    assert not notes(caplog)


def test_folders_that_are_links_are_followed_in_training_and_prediction_alike(tmp_path, caplog):
    caplog.set_level("INFO")
    picture(tmp_path / "elsewhere" / "1.png")
    picture(tmp_path / "data" / "cat" / "1.png")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "cat" / "loop").symlink_to(tmp_path / "data")
    images = open_images(str(tmp_path / "data"), tiny_config())
    [batch] = images.batches(8)
    assert images.class_names == ("cat", "dog") and batch.labels.tolist() == [0, 1]
    assert [place.name for place in list_images([str(tmp_path / "data")], [])] == batch.names
    assert notes(caplog) == [f"Links in {tmp_path}/data to a folder that contains them were not followed, 1 in all; "
                             f"the first: {tmp_path}/data/cat/loop."]


def test_a_class_that_is_a_link_to_its_own_parent_is_named_for_what_it_is(tmp_path):
    picture(tmp_path / "data" / "cat" / "1.png")
    (tmp_path / "data" / "whole").symlink_to(tmp_path / "data")
    with pytest.raises(DataError, match="whole is a link to a folder that contains it"):
        open_images(str(tmp_path / "data"), tiny_config())


@pytest.mark.parametrize("name", ["photo.jpg", "photo.eps"])
def test_a_file_of_another_format_is_not_given_to_other_programs(tmp_path, monkeypatch, name):
    from PIL import EpsImagePlugin
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("Ghostscript was started"))
    (tmp_path / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match="not an image of a known format"):
        decode(tmp_path / name)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "gif", "ppm"])
def test_every_listed_format_is_decoded(tmp_path, suffix):
    picture(tmp_path / f"a.{suffix}", value=(50, 100, 150))
    [batch] = open_images(str(tmp_path), tiny_config()).batches(1)
    assert np.abs(batch.images[0, 16, 16].astype(int) - [50, 100, 150]).max() <= 2
