import dataclasses

import numpy as np
import pytest
import torch
from helpers import PHOTOS, needs_photos, tiny_config
from PIL import Image
from timm.data import create_transform

from dyvit_deploy.checkpoints.recorded import Steps
from dyvit_deploy.data.preprocess import normalise, resize_and_crop
from dyvit_deploy.errors import ConfigError
from dyvit_deploy.model import zoo
from dyvit_deploy.model.build import timm_preprocess
from dyvit_deploy.model.identify import prepare
from dyvit_deploy.runners.base import ForeignImages
from dyvit_deploy.settings.preprocessing import Preprocess


@needs_photos
@pytest.mark.parametrize("name", ["deit-s", "deit-s-384"])
def test_photos_are_prepared_exactly_as_torchvision_does(name):
    from torchvision import transforms
    config = zoo.get(name)
    steps = ([transforms.Resize(256, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)]
             if name == "deit-s" else [transforms.Resize((384, 384), transforms.InterpolationMode.BICUBIC)])
    theirs = transforms.Compose([*steps, transforms.ToTensor(),
                                 transforms.Normalize(config.preprocess.mean, config.preprocess.std)])
    for path in sorted(PHOTOS.glob("*.jpg")):
        image = Image.open(path).convert("RGB")
        ours = normalise(resize_and_crop(image, config)[None], config.preprocess)[0]
        assert torch.allclose(torch.from_numpy(ours), theirs(image), atol=1e-6), path


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("crop", [0.875, 0.9, 1.0])
@pytest.mark.parametrize("size", [(112, 448), (448, 112), (64, 391), (224, 240), (96, 96)])
def test_inputs_that_are_not_square_are_prepared_as_by_timm(size, crop, mode):
    weights = {"crop_pct": crop, "crop_mode": mode, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
               "interpolation": "bicubic"}
    theirs = create_transform((3, *size), is_training=False, **weights)
    prepared = timm_preprocess(weights, size)
    rng = np.random.default_rng(0)
    for side in ((300, 200), (200, 300), (37, 500), (500, 37), (113, 448), (101, 101)):
        image = Image.fromarray(rng.integers(0, 256, (*side, 3), np.uint8))
        ours = normalise(resize_and_crop(image, ForeignImages(size, prepared))[None], prepared)[0]
        assert torch.allclose(torch.from_numpy(ours), theirs(image), atol=1e-6), side


@pytest.mark.parametrize("size, crop, mode, sides", [
    ((112, 448), 0.875, "center", (128, 512, False)), ((448, 112), 0.875, "squash", (128, 512, True)),
    ((112, 448), 1.0, "squash", (None, None, False)), ((112, 112), 0.875, "center", (128, None, False))])
def test_a_crop_that_is_given_keeps_its_fraction_along_both_sides(size, crop, mode, sides):
    own = Preprocess(128)
    steps = Steps(crop=crop, squash=mode == "squash")
    for prepared in (prepare(own, steps, size, None), tiny_config(image_size=(56, 56), preprocess=dataclasses.replace(
            prepare(own, steps, (56, 56), None))).with_image_size(size).preprocess):
        assert (prepared.short_side, prepared.long_side, prepared.squash) == sides


@pytest.mark.parametrize("short, long", [(None, 64), (64, 32), (64, 0), (64, 1 << 20)])
def test_sides_that_cannot_be_are_refused(short, long):
    with pytest.raises(ConfigError, match="resized to"):
        Preprocess(short, long_side=long)


@pytest.mark.parametrize("size", [(1, 1), (500, 3), (33, 32), (32, 33)])
def test_an_image_of_any_size_gets_the_models_input_size(size):
    image = Image.new("RGB", size, (10, 20, 30))
    for short_side in (None, 36):
        config = tiny_config(preprocess=Preprocess(short_side=short_side))
        array = resize_and_crop(image, config)
        assert array.shape == (32, 32, 3) and array[16, 16].tolist() == [10, 20, 30]


def test_normalisation_is_per_channel_in_rgb_order():
    images = np.zeros((1, 2, 2, 3), np.uint8)
    images[..., 0] = 255
    out = normalise(images, Preprocess(mean=(0.5, 0.25, 0), std=(0.5, 1, 2)))
    assert out.shape == (1, 3, 2, 2) and out.dtype == np.float32
    assert out[0, :, 0, 0].tolist() == [1.0, -0.25, 0.0]
