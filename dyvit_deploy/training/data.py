"""Batches for training: timm's augmentation, and an order that does not depend on who computes it.

Every random choice follows from (seed, epoch, step or image), never from what ran before. So a resumed
run, another number of processes, workers or accumulated parts see the same images, augmented alike. Streams of
shards are the exception: their order depends on who reads which shard.
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
RETRIES = 50                                # unreadable images in a row, after which the data are at fault
ROUND = 1_000_000                           # added to the epoch when an image comes again within it
Key = tuple[int, int]                       # epoch, index
DEATH = re.compile(r"worker.*(killed by signal|exited unexpectedly)")


class Part(NamedTuple):
    """What one process computes at once: a slice of a step's images.

    images: float32 [B, 3, height, width], normalised and augmented.
    labels: int64 [B].
    first: number of the first image within the step.
    broken: images that could not be read and were replaced, with the reason.
    """

    images: Tensor
    labels: Tensor
    first: int
    broken: list[str]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; the host does not wait for a copy to a GPU, which for that is made from pinned memory."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class Share:
    """Which slices of each step's `batch` images one process takes: one of `world`, in `accumulate` parts."""

    batch: int
    rank: int = 0
    world: int = 1
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.accumulate < 1 or self.batch % (self.world * self.accumulate):
            raise ConfigError(f"A batch of {self.batch} cannot be divided among {self.world} processes in "
                              f"{self.accumulate} parts each; change --batch or --accumulate.")

    @property
    def size(self) -> int:
        """Images of one part."""
        return self.batch // (self.world * self.accumulate)

    def firsts(self) -> list[int]:
        """Where this process's parts begin within the step."""
        return [(part * self.world + self.rank) * self.size for part in range(self.accumulate)]


def mixed_seed(*numbers: int) -> int:
    """One seed of several numbers, below 2**32."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_everything(*numbers: int) -> None:
    """Seeds what augmentation, mixup, stochastic depth and token sampling draw from."""
    seed = mixed_seed(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def epoch_order(count: int, wanted: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """`wanted` of `count` image numbers, shuffled; all of them before any comes twice."""
    rng = np.random.default_rng([seed, epoch])
    rounds = [rng.permutation(count) for _ in range(-(-wanted // count))]
    return np.concatenate(rounds)[:wanted].astype(np.int64)


class _Order(Sampler[list[Key]]):
    """The keys of one process's parts of an epoch, from `first_step` on."""

    def __init__(self, count: int, wanted: int, share: Share, seed: int) -> None:
        self.count, self.wanted, self.share, self.seed = count, wanted, share, seed
        self.epoch = self.first_step = 0

    def __len__(self) -> int:
        return (self.wanted // self.share.batch - self.first_step) * self.share.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        order = epoch_order(self.count, self.wanted, self.seed, self.epoch)
        for step in range(self.first_step, self.wanted // self.share.batch):
            for first in self.share.firsts():
                start = step * self.share.batch + first
                places = range(start, start + self.share.size)
                # An image that comes twice in an epoch is another one each time.
                yield [(self.epoch + ROUND * (place // self.count), int(order[place])) for place in places]


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
            raise ConfigError(f"timm knows no augmentation {recipe.rand_augment!r}; write it like "
                              "rand-m9-mstd0.5-inc1.") from error

    def __call__(self, image: Image.Image) -> Tensor:
        if self._model is not None:                                        # framed as in evaluation
            image = Image.fromarray(resize_and_crop(image, self._model))
        tensor: Tensor = self._transform(image)
        return tensor


Item = tuple[Tensor, int, list[str]] | DataError
# An error raised in a worker would arrive with the worker's traceback as its text; so it is returned.


class _Samples(Dataset[Item]):
    """Augmented images by (epoch, index); an unreadable one is replaced by the next."""

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
    """Augmented images of shards that can only be read in order; begins again when they are used up."""

    def __init__(self, stream: Stream, augment: Augment, share: Share, seed: int) -> None:
        self.stream, self.augment, self.share, self.seed = stream, augment, share, seed
        self.epoch = 0

    def __iter__(self) -> Iterator[Item]:
        again, told = 0, len(self.stream.skipped)
        worker = get_worker_info()
        while True:
            seed_everything(self.seed, self.epoch, self.share.rank, worker.id if worker else 0, again)
            order, empty = mixed_seed(self.seed, self.epoch, again), True  # alike for all who share the shards
            for image, label in self.stream.stream(order, self.share.rank, self.share.world):
                empty = False
                broken, told = self.stream.skipped[told:], len(self.stream.skipped)
                yield self.augment(image), label, broken
            if empty:                                                      # other workers may have better shards
                for line in self.stream.skipped[told:]:
                    log.warning("skipped %s", line)
                return
            again += 1


def _collate(items: list[Item]) -> tuple[Tensor, Tensor, list[str]] | DataError:
    for item in items:
        if isinstance(item, DataError):
            return item
    images, labels, broken = zip(*items)
    return torch.stack(images), torch.tensor(labels), [line for lines in broken for line in lines]


@cache
def _leaving() -> Event:
    """Set when this process ends, before Python ends its workers."""
    event = multiprocessing.Event()
    atexit.register(event.set)
    return event


def _answer_signals(leaving: Event, worker: int) -> None:
    """A signal to all processes of a job is the main one's to answer: it still needs what the workers load.

    Once the main process is leaving, SIGTERM is its own: Python sends it at exit and then waits without a limit.
    """
    def terminate(number: int, frame: Any) -> None:
        if leaving.is_set():
            os._exit(0)

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class TrainLoader:
    """The training images of one process, step by step. `steps` per epoch; what does not fill one is left out.

    `pinned` loads them into page-locked memory, from which `to_device` copies to a GPU without blocking.
    """

    def __init__(self, samples: Samples | Stream, model: ModelConfig, recipe: Recipe, share: Share,
                 workers: int, pinned: bool = False) -> None:
        if workers < 0:
            raise ConfigError(f"--workers must be 0 or more, not {workers}.")
        wanted = recipe.images or len(samples)
        self.steps, self.share, self._name = wanted // share.batch, share, samples.name
        if not self.steps:
            raise ConfigError(f"{samples.name} has {len(samples)} training images, which do not fill one batch of "
                              f"{share.batch}; lower --batch.")
        augment = Augment(model, recipe, samples.mirror)
        self._order = _Order(len(samples), wanted, share, recipe.seed)
        self._streamed = hasattr(samples, "stream")
        make: Any = partial(_Streamed, share=share) if self._streamed else _Samples
        dataset = make(samples, augment=augment, seed=recipe.seed)
        self._dataset = dataset
        batching = {"batch_size": share.size} if self._streamed else {"batch_sampler": self._order}
        self._loader = DataLoader(dataset, collate_fn=_collate, num_workers=workers, pin_memory=pinned,
                                  worker_init_fn=partial(_answer_signals, _leaving()),
                                  persistent_workers=bool(workers) and not self._streamed, **batching)

    def steps_of(self, epoch: int, first_step: int = 0) -> Iterator[list[Part]]:
        """This process's parts of every step of `epoch` from `first_step` on.

        Raises:
            DataError: nothing readable.
        """
        self._order.epoch, self._order.first_step, self._dataset.epoch = epoch, first_step, epoch
        firsts = self.share.firsts()
        parts: list[Part] = []
        skip = first_step * len(firsts) if self._streamed else 0           # a stream has no other way to go on
        left = (self.steps - first_step) * len(firsts)
        for number, (images, labels, broken) in enumerate(self._batches(skip + left)):
            if number < skip:
                continue
            parts.append(Part(images, labels, firsts[len(parts)], broken))
            if len(parts) == len(firsts):
                yield parts
                parts = []

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
    """A dead worker as a sentence; PyTorch raises it wherever the main process happens to be."""
    try:
        yield
    except (RuntimeError, BackendError) as error:
        if not DEATH.search(str(error)):
            raise
        said = str(error).splitlines()[0].rstrip(" .")
        raise TrainingError(f"A data worker died ({said}); it ran out of memory or was killed: lower --workers and go "
                            "on with --resume.") from error


def make_mixup(recipe: Recipe, classes: int) -> Mixup | None:
    """timm's mixup and cutmix, label smoothing included, or None when both are off."""
    if not recipe.mixup and not recipe.cutmix:
        return None
    return Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=classes)
