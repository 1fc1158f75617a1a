import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import HANGS, ROOT, tiny_config, two_classes
from PIL import Image

from dyvit_deploy.data.folder import FolderImages
from dyvit_deploy.data.preprocess import normalise, resize_and_crop
from dyvit_deploy.errors import ConfigError, DataError, TrainingError
from dyvit_deploy.training import data
from dyvit_deploy.training.data import Augment, Share, TrainLoader, epoch_order, make_mixup, worker_deaths
from dyvit_deploy.training.recipe import make_recipe

RECIPE = make_recipe("small", "tiny", "student", {"batch": 8})
STRONG = make_recipe("paper", "tiny", "student", {"batch": 8, "lr": 1e-3})


@pytest.fixture
def folder(tmp_path):
    two_classes(tmp_path)
    return FolderImages(tmp_path, tiny_config(), "train")


def loader(samples, share=Share(8), recipe=RECIPE, workers=0):
    return TrainLoader(samples, tiny_config(), recipe, share, workers)


def steps(*args, epoch=0, first=0, **kwargs):
    return list(loader(*args, **kwargs).steps_of(epoch, first))


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order():
    assert sorted(epoch_order(24, 24, 0, 3)) == list(range(24))
    assert not np.array_equal(epoch_order(24, 24, 0, 3), epoch_order(24, 24, 0, 4))
    assert set(np.bincount(epoch_order(5, 12, 0, 0))) <= {2, 3}


def test_the_images_do_not_depend_on_how_a_batch_is_divided(folder):
    whole = steps(folder, recipe=STRONG)
    for shares in ([Share(8, rank, 2) for rank in range(2)], [Share(8, 0, 1, 4)],
                   [Share(8, rank, 2, 2) for rank in range(2)]):
        for number, [expected] in enumerate(whole):
            found = sorted((batch for share in shares for batch in steps(folder, share, STRONG)[number]),
                           key=lambda batch: batch.first)
            assert torch.equal(torch.cat([batch.images for batch in found]), expected.images)
            assert torch.equal(torch.cat([batch.labels for batch in found]), expected.labels)


def test_the_images_do_not_depend_on_workers_or_the_first_step(folder):
    whole = steps(folder, recipe=STRONG, epoch=1)
    later = steps(folder, recipe=STRONG, epoch=1, first=1)
    for other in (steps(folder, recipe=STRONG, epoch=1, workers=2), [None, *later]):
        assert len(other) == 3
        for [expected], found in zip(whole[1:], other[1:]):
            assert torch.equal(expected.images, found[0].images)


def test_without_augmentation_training_and_evaluation_see_the_same_images(folder):
    plain = make_recipe("small", "tiny", "student", {"flip": 0})
    [batch] = folder.batches(24)
    expected = torch.from_numpy(normalise(batch.images, tiny_config().preprocess))
    augment = Augment(tiny_config(), plain, mirror=True)
    found = torch.stack([augment(folder.sample(i, 0)[0]) for i in range(24)])
    assert torch.allclose(found, expected, atol=1e-5)


def test_images_that_are_not_square_are_cropped_as_in_evaluation():
    wide = tiny_config(image_size=(32, 48), preprocess=tiny_config().preprocess)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    found = Augment(wide, make_recipe("small", "tiny", "student", {"flip": 0}), mirror=True)(image)
    expected = normalise(resize_and_crop(image, wide)[None], wide.preprocess)[0]
    assert torch.allclose(found, torch.from_numpy(expected), atol=1e-5)


def test_an_image_that_comes_twice_in_an_epoch_is_augmented_anew(folder):
    many = make_recipe("paper", "tiny", "student", {"batch": 24, "images": 48, "lr": 1e-3})
    [[first], [second]] = steps(folder, Share(24), many)
    assert sorted(first.labels.tolist()) == sorted(second.labels.tolist())
    assert first.images.sum() != second.images.sum()


def test_an_augmentation_that_timm_does_not_know_is_refused():
    with pytest.raises(ConfigError, match="no augmentation 'foo'"):
        Augment(tiny_config(), make_recipe("small", "tiny", "student", {"rand_augment": "foo"}), mirror=True)


def test_data_that_must_not_be_mirrored_are_never_flipped():
    always = make_recipe("small", "tiny", "student", {"flip": 1})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    mirrored, straight = (Augment(tiny_config(preprocess=tiny_config().preprocess), always, mirror)(image)
                          for mirror in (True, False))
    assert torch.equal(mirrored.flip(-1), straight)


def test_a_broken_image_is_named_and_replaced(folder, tmp_path):
    for name in ("dark/3.png", "dark/4.png"):
        (tmp_path / "train" / name).write_bytes(b"broken")
    batches = [batch for step in steps(folder) for batch in step]
    named = [line for batch in batches for line in batch.broken]
    assert {line.split(":")[0].rsplit("/", 1)[1] for line in named} == {"3.png", "4.png"}
    assert all(len(batch.images) == 8 for batch in batches)


def test_data_without_a_readable_image_are_an_error(folder, tmp_path):
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"broken")
    for workers in (0, 1):
        with pytest.raises(DataError, match="24 images in a row cannot be read"):
            steps(folder, workers=workers)


def test_a_dead_worker_is_a_training_error(folder, monkeypatch):
    monkeypatch.setattr(FolderImages, "sample", lambda *_: os._exit(9))
    with pytest.raises(TrainingError, match="A data worker died"), worker_deaths():
        steps(folder, workers=1)


def test_batches_that_cannot_be_divided_or_filled_are_refused(folder):
    with pytest.raises(ConfigError, match="cannot be divided among 3 processes"):
        Share(8, 0, 3)
    with pytest.raises(ConfigError, match="do not fill one batch of 32"):
        loader(folder, Share(32))


@pytest.mark.parametrize("pinned", [True, False])
def test_images_are_loaded_into_pinned_memory_for_a_gpu_only(folder, monkeypatch, pinned):
    options = []
    monkeypatch.setattr(data, "DataLoader", lambda *_, **given: options.append(given["pin_memory"]))
    TrainLoader(folder, tiny_config(), RECIPE, Share(8), 0, **({"pinned": True} if pinned else {}))
    assert options == [pinned]


def test_a_pinned_micro_batch_keeps_its_broken_images(folder, tmp_path, monkeypatch):
    """Runs PyTorch's own code for pinned batches, with a fake that does not pin memory."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    copied = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: copied.append(tensor.shape) or tensor.clone())
    (tmp_path / "train" / "dark" / "3.png").write_bytes(b"broken")
    plain = steps(folder)
    pinned = list(TrainLoader(folder, tiny_config(), RECIPE, Share(8), 0, pinned=True).steps_of(0))
    assert [a.broken for [a] in pinned] == [b.broken for [b] in plain] and any(a.broken for [a] in pinned)
    assert all(torch.equal(a.images, b.images) for [a], [b] in zip(pinned, plain)) and len(copied) == 2 * len(plain)
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="24 images in a row cannot be read"):
        list(TrainLoader(folder, tiny_config(), RECIPE, Share(8), 0, pinned=True).steps_of(0))


def test_mixup_is_timms_and_off_by_default():
    assert make_mixup(RECIPE, 5) is None
    mixup = make_mixup(STRONG, 5)
    np.random.seed(0)
    _, targets = mixup(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))
    assert targets.shape == (4, 5) and torch.allclose(targets.sum(1), torch.ones(4))


class Shards:
    """A stream of three images, whose second cannot be read."""

    name, mirror, class_names = "shards", True, ("a", "b")

    def __init__(self, count=3):
        self.skipped, self.count = [], count

    def __len__(self):
        return 8

    def stream(self, epoch, rank, world):
        for i in range(self.count):
            if i == 1:
                self.skipped.append("two.jpg: broken")
            else:
                yield Image.new("RGB", (32, 32), (i * 80,) * 3), i % 2


def test_a_stream_fills_its_steps_and_records_broken_images():
    [[batch]] = steps(Shards())
    assert batch.images.shape == (8, 3, 32, 32) and batch.broken and set(batch.broken) == {"two.jpg: broken"}
    with pytest.raises(DataError, match="no readable image"):
        steps(Shards(0))


KILL_THE_WORKER = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {here!r}]
from test_data import Shards, loader
batches = loader(Shards(), workers=1).steps_of(0)
next(batches)
[worker] = __import__("multiprocessing").active_children()
# A signal to the whole job reaches the worker, too.
os.kill(worker.pid, signal.SIGTERM)
worker.join(0.5)
assert worker.is_alive()
"""


def test_workers_ignore_a_signal_to_the_job_but_end_with_the_main_process():
    script = KILL_THE_WORKER.format(tests=str(ROOT / "tests"), here=str(ROOT / "tests/training"))
    subprocess.run([sys.executable, "-c", script], check=True, timeout=HANGS, cwd=ROOT)
