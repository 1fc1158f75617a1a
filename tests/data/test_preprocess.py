import numpy as np
import pytest
import torch
from helpers import PHOTOS, needs_photos, tiny_config
from PIL import Image

from dyvit_deploy.config import Preprocess
from dyvit_deploy.data.preprocess import normalise, resize_and_crop
from dyvit_deploy.model import zoo


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
