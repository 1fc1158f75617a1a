"""What a comparison keeps of each image, and that it is no more."""
import tracemalloc

import numpy as np
import pytest
import torch
from fake_runner import FakeRunner
from helpers import fake_runner, tiny_checkpoint, tiny_config

from dyvit_deploy.data.images import NoiseImages
from dyvit_deploy.model.checkpoint import load_model
from dyvit_deploy.parity.against import check_against
from dyvit_deploy.parity.compare import compare, compare_outputs, judge
from dyvit_deploy.parity.config import CheckConfig
from dyvit_deploy.parity.images import Comparison, InBatches, UpperTail
from dyvit_deploy.parity.tolerance import Tolerance
from dyvit_deploy.runners.base import Outputs, TensorSpec, take

FEW, MANY = 100, 700


def peak_mib(work, count):
    tracemalloc.start()
    try:
        work(count)
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def assert_flat(work, image_bytes):
    """All images of the larger run would be 3 times what is allowed, or more."""
    work(8)
    few, many = peak_mib(work, FEW), peak_mib(work, MANY)
    assert many - few < (MANY - FEW) * image_bytes / 2**20 / 3, (few, many)


def test_the_memory_of_a_comparison_does_not_grow_with_its_images():
    spec, side = TensorSpec("images", "float32", (None, 3, 64, 64)), 64
    runner = FakeRunner(lambda feed: Outputs(np.zeros((len(feed), 5), np.float32)), spec)

    def check(count):
        assert compare(runner, runner, NoiseImages(tiny_config(image_size=(side, side)), count),
                       CheckConfig(batches=(1, 8)))
    assert_flat(check, 3 * side * side)


def test_the_memory_of_a_comparison_with_a_file_does_not_grow_with_its_images(tmp_path):
    model, _ = load_model(path := tiny_checkpoint(tmp_path))
    images = torch.randn(MANY, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = torch.cat([model(part) for part in images.split(50)])
    np.savez(tmp_path / "r.npz", images=images.numpy(), logits=logits.numpy())

    def check(count):
        assert check_against(path, str(tmp_path / "r.npz"), config=CheckConfig(count, (8,)))
    assert_flat(check, 4 * 3 * 32 * 32)


@pytest.mark.parametrize("count", [1, 2, 7, 100, 1001])
def test_the_quantile_of_streamed_errors_is_that_of_all(count):
    values, tail = np.random.default_rng(count).exponential(size=count), UpperTail(0.99, count)
    for part in np.array_split(values, 7):
        tail.add(part)
    assert tail.quantile() == pytest.approx(np.quantile(values, 0.99), rel=1e-12)
    assert len(tail._largest) <= 2 * (0.01 * count + 2)


@pytest.mark.parametrize("sizes", [[20], [3, 8, 1, 8], [1] * 20, [8, 8, 4]])
def test_the_verdict_does_not_depend_on_how_the_images_come(sizes):
    rng, names = np.random.default_rng(0), [f"image {number}" for number in range(20)]
    logits, scores = rng.standard_normal((20, 5), np.float32), rng.standard_normal((20, 4), np.float32)
    kept = np.argsort(-scores, axis=1)[:, :2]
    expected = Outputs(logits, (kept,), (scores,))
    noise = np.float32(1e-4) * rng.standard_normal(logits.shape, np.float32)
    got = Outputs(logits + noise, (np.roll(kept, 1, axis=0),))
    whole = compare_outputs(expected, got, 8, Tolerance(), names)
    # The "images" are their numbers.
    parts = InBatches(lambda images: take(got, images), 8, Comparison(20, Tolerance().tie))
    start = 0
    for size in sizes:
        rows = np.arange(start, min(start + size, 20))
        parts.add(rows, take(expected, rows), [names[row] for row in rows])
        start += size
    parts.finish()
    assert judge(parts.comparison, 8, Tolerance()) == whole and whole.failures


def test_every_batch_but_the_last_is_full():
    seen = []
    runner = fake_runner(np.zeros((8, 5)))
    runner._answer = lambda feed: seen.append(len(feed)) or Outputs(np.zeros((len(feed), 5), np.float32))
    images = NoiseImages(tiny_config(image_size=(4, 4), patch_size=1), 20)
    compare(fake_runner(np.zeros((8, 5))), runner, images, CheckConfig(batches=(3, 8)))
    assert sorted(seen) == sorted([3] * 6 + [2] + [8, 8, 4])
