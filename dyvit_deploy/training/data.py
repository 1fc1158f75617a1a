"""Batches for training: timm's augmentation, in an order that does not depend on the number of processes.

Every random choice is a function of (seed, epoch, step or image), never of earlier computations. A resumed run, or a
run with another number of processes, workers or micro-batches, therefore sees the same images with the same
augmentation. Streams of shards are the exception: their order depends on which process and worker reads which shard.
"""
from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import os
import random
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.synchronize import Event
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import Mixup, create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from ..config import ModelConfig
from ..data.images import UNREADABLE, Samples, Stream
from ..data.preprocess import resize_and_crop
from ..errors import BackendError, ConfigError, DataError, TrainingError
from .recipe import Recipe

log = logging.getLogger(__name__)
# So many unreadable images in a row are an error of the data.
RETRIES = 50
# Added to the epoch in the key of an image each time it is repeated within the epoch.
ROUND = 1_000_000
# Epoch and index of an image.
Key = tuple[int, int]
DEATH = re.compile(r"worker.*(killed by signal|exited unexpectedly)")


class MicroBatch(NamedTuple):
    """The images of a step that one process computes at once.

    images: float32 [B, 3, height, width], normalised and augmented.
    labels: int64 [B].
    first: index of the first image within the step.
    broken: the images that were replaced because they could not be read, each with the reason.
    """

    images: Tensor
    labels: Tensor
    first: int
    broken: list[str]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies `tensor` to `device`; to a GPU from pinned memory, so that the host does not wait for the copy."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class Share:
    """The share of process `rank` of `world` in each step of `batch` images, in `accumulate` micro-batches."""

    batch: int
    rank: int = 0
    world: int = 1
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.accumulate < 1 or self.batch % (self.world * self.accumulate):
            raise ConfigError(f"A batch of {self.batch} cannot be divided among {self.world} processes in "
                              f"{self.accumulate} micro-batches each; change --batch or --accumulate.")

    @property
    def size(self) -> int:
        """Images per micro-batch."""
        return self.batch // (self.world * self.accumulate)

    def firsts(self) -> list[int]:
        """The index within the step of the first image of each of this process's micro-batches."""
        return [(number * self.world + self.rank) * self.size for number in range(self.accumulate)]


def mixed_seed(*numbers: int) -> int:
    """Combines several numbers into one seed below 2**32."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_everything(*numbers: int) -> None:
    """Seeds all generators that augmentation, mixup, stochastic depth and token sampling use."""
    seed = mixed_seed(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def epoch_order(count: int, length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """`length` shuffled indices below `count`; every index occurs once before any occurs twice."""
    rng = np.random.default_rng([seed, epoch])
    rounds = [rng.permutation(count) for _ in range(-(-length // count))]
    return np.concatenate(rounds)[:length].astype(np.int64)


class _Order(Sampler[list[Key]]):
    """The keys of one process's micro-batches in an epoch, starting at `first_step`."""

    def __init__(self, count: int, length: int, share: Share, seed: int) -> None:
        self.count, self.length, self.share, self.seed = count, length, share, seed
        self.epoch = self.first_step = 0

    def __len__(self) -> int:
        return (self.length // self.share.batch - self.first_step) * self.share.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        order = epoch_order(self.count, self.length, self.seed, self.epoch)
        for step in range(self.first_step, self.length // self.share.batch):
            for first in self.share.firsts():
                start = step * self.share.batch + first
                positions = range(start, start + self.share.size)
                # An image that is repeated within an epoch is augmented differently each time.
                yield [(self.epoch + ROUND * (i // self.count), int(order[i])) for i in positions]


class Augment:
    """timm's training transform: RGB image -> float32 [3, height, width], normalised."""

    def __init__(self, model: ModelConfig, recipe: Recipe, mirror: bool) -> None:
        self._model = model if recipe.random_crop is None else None
        preprocess, (height, width) = model.preprocess, model.image_size
        try:
            self._transform = create_transform(
                (3, height, width), is_training=True, scale=recipe.random_crop or (1.0, 1.0),
                ratio=None if recipe.random_crop else (width / height,) * 2, hflip=recipe.flip if mirror else 0.0,
                color_jitter=recipe.color_jitter, auto_augment=recipe.rand_augment,
                interpolation=preprocess.interpolation, mean=preprocess.mean, std=preprocess.std,
                re_prob=recipe.random_erasing, re_mode="pixel")
        except (AssertionError, ValueError, KeyError) as error:
            raise ConfigError(f"timm has no augmentation {recipe.rand_augment!r}; write it like "
                              "rand-m9-mstd0.5-inc1.") from error

    def __call__(self, image: Image.Image) -> Tensor:
        # Without random crops, images are cropped as in evaluation.
        if self._model is not None:
            image = Image.fromarray(resize_and_crop(image, self._model))
        tensor: Tensor = self._transform(image)
        return tensor


# An error raised in a worker would arrive with the worker's traceback as its message, so it is returned instead.
Item = tuple[Tensor, int, list[str]] | DataError


class _Samples(Dataset[Item]):
    """Augmented images by (epoch, index); an unreadable image is replaced by the next readable one."""

    def __init__(self, samples: Samples, augment: Augment, seed: int) -> None:
        self.samples, self.augment, self.seed = samples, augment, seed

    def __getitem__(self, key: Key) -> Item:
        epoch, index = key
        seed_everything(self.seed, epoch, index)
        broken: list[str] = []
        while True:
            try:
                image, label = self.samples.sample(index, epoch)
                return self.augment(image), label, broken
            except UNREADABLE as error:
                broken.append(f"{self.samples.name_of(index)}: {error}")
            if len(broken) == min(RETRIES, len(self.samples)):
                return DataError(f"{len(broken)} images in a row cannot be read in {self.samples.name}; "
                                 f"the first: {broken[0]}.")
            index = (index + 1) % len(self.samples)


class _Streamed(IterableDataset[Item]):
    """Augmented images of a `Stream`, which starts again when it ends."""

    def __init__(self, stream: Stream, augment: Augment, share: Share, seed: int) -> None:
        self.stream, self.augment, self.share, self.seed = stream, augment, share, seed
        self.epoch = 0

    def __iter__(self) -> Iterator[Item]:
        passes, reported = 0, len(self.stream.skipped)
        worker = get_worker_info()
        while True:
            seed_everything(self.seed, self.epoch, self.share.rank, worker.id if worker else 0, passes)
            # All processes and workers must shuffle the shards alike.
            order, empty = mixed_seed(self.seed, self.epoch, passes), True
            for image, label in self.stream.stream(order, self.share.rank, self.share.world):
                empty = False
                broken, reported = self.stream.skipped[reported:], len(self.stream.skipped)
                yield self.augment(image), label, broken
            # No error: the shards of other workers may be readable.
            if empty:
                for line in self.stream.skipped[reported:]:
                    log.warning("skipped %s", line)
                return
            passes += 1


def _collate(items: list[Item]) -> tuple[Tensor, Tensor, list[str]] | DataError:
    for item in items:
        if isinstance(item, DataError):
            return item
    images, labels, broken = zip(*items)
    return torch.stack(images), torch.tensor(labels), [line for lines in broken for line in lines]


@cache
def _exiting() -> Event:
    """An event that is set when this process exits, before Python terminates its workers."""
    event = multiprocessing.Event()
    atexit.register(event.set)
    return event


def _handle_signals(exiting: Event, worker: int) -> None:
    """Makes a worker ignore signals to the whole job: the main process handles them, and still needs the worker.

    Once the main process is exiting, SIGTERM comes from Python itself, which then waits for the worker without a
    limit.
    """
    def terminate(number: int, frame: Any) -> None:
        if exiting.is_set():
            os._exit(0)

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class TrainLoader:
    """The training images of one process, step by step. `steps` is their number per epoch; an incomplete last step is
    omitted.

    `pinned` loads images into page-locked memory, from which `to_device` copies to a GPU without blocking.
    """

    def __init__(self, samples: Samples | Stream, model: ModelConfig, recipe: Recipe, share: Share,
                 workers: int, pinned: bool = False) -> None:
        if workers < 0:
            raise ConfigError(f"--workers must be 0 or more, not {workers}.")
        length = recipe.images or len(samples)
        self.steps, self.share, self._name = length // share.batch, share, samples.name
        if not self.steps:
            raise ConfigError(f"{samples.name} has {len(samples)} training images, which do not fill one batch of "
                              f"{share.batch}; lower --batch.")
        augment = Augment(model, recipe, samples.mirror)
        self._order = _Order(len(samples), length, share, recipe.seed)
        self._streamed = hasattr(samples, "stream")
        make: Any = partial(_Streamed, share=share) if self._streamed else _Samples
        dataset = make(samples, augment=augment, seed=recipe.seed)
        self._dataset = dataset
        batching = {"batch_size": share.size} if self._streamed else {"batch_sampler": self._order}
        self._loader = DataLoader(dataset, collate_fn=_collate, num_workers=workers, pin_memory=pinned,
                                  worker_init_fn=partial(_handle_signals, _exiting()),
                                  persistent_workers=bool(workers) and not self._streamed, **batching)

    def steps_of(self, epoch: int, first_step: int = 0) -> Iterator[list[MicroBatch]]:
        """This process's micro-batches of every step of `epoch`, starting at `first_step`.

        Raises:
            DataError: no image can be read.
        """
        self._order.epoch, self._order.first_step, self._dataset.epoch = epoch, first_step, epoch
        firsts = self.share.firsts()
        micro_batches: list[MicroBatch] = []
        # A stream can only resume by reading what it skips.
        skip = first_step * len(firsts) if self._streamed else 0
        remaining = (self.steps - first_step) * len(firsts)
        for number, (images, labels, broken) in enumerate(self._batches(skip + remaining)):
            if number < skip:
                continue
            micro_batches.append(MicroBatch(images, labels, firsts[len(micro_batches)], broken))
            if len(micro_batches) == len(firsts):
                yield micro_batches
                micro_batches = []

    def _batches(self, count: int) -> Iterator[Any]:
        batches = iter(self._loader)
        for _ in range(count):
            batch = next(batches, None)
            if batch is None:
                raise DataError(f"{self._name} gave no readable image; check its shards.")
            if isinstance(batch, DataError):
                raise batch
            yield batch


@contextlib.contextmanager
def worker_deaths() -> Iterator[None]:
    """Raises TrainingError if a data worker dies; PyTorch reports that wherever the main process happens to be."""
    try:
        yield
    except (RuntimeError, BackendError) as error:
        if not DEATH.search(str(error)):
            raise
        reason = str(error).splitlines()[0].rstrip(" .")
        raise TrainingError(f"A data worker died ({reason}); it ran out of memory or was killed: lower --workers, and "
                            "continue with --resume.") from error


def make_mixup(recipe: Recipe, classes: int) -> Mixup | None:
    """timm's mixup and cutmix with label smoothing, or None if both are off."""
    if not recipe.mixup and not recipe.cutmix:
        return None
    return Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=classes)
