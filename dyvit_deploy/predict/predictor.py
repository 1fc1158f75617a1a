"""Predicts batches of images with a runner in this process."""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from itertools import islice

import numpy as np

from ..config import LoadConfig, with_orientation
from ..data.label_files import read_labels
from ..data.listing import ImagePlace
from ..data.reading import DecodedImage, ImageReader, UnreadableImage, read_images
from ..errors import ConfigError
from ..evaluation.metrics import softmax
from ..runners.base import Runner, run_in_batches
from ..runners.open import open_runner
from .config import DEFAULT_TOP, PredictConfig
from .report import Prediction

# The images of one batch, `config.batch` of them; the last chunk may be shorter.
Chunk = list[ImagePlace]
# Predicts chunks lazily and in order; yields each with its rows.
PredictChunks = Callable[[Iterator[Chunk]], Iterator[tuple[Chunk, list[Prediction]]]]
# Opens an artifact to predict with.
OpenBackend = Callable[[str, PredictConfig, LoadConfig], AbstractContextManager[PredictChunks]]
NO_NUMBER = "the model's answer is no number (NaN or infinity)"


class Predictor:
    """Turns images into rows with an open `runner`.

    Raises:
        ConfigError: `config.top` is larger than the number of classes.
        DataError: `config.labels` does not have the names of the classes.
    """

    def __init__(self, runner: Runner, config: PredictConfig, load: LoadConfig) -> None:
        self.spec = with_orientation(runner.image_spec(load.image_size), config.orient)
        self._runner, self._config = runner, config
        # A file that dyvit did not write does not record the number of classes, so one image is run to count logits.
        blank = np.zeros((1, *self.spec.image_size, 3), np.uint8)
        classes = run_in_batches(runner, blank, 1).logits.shape[1]
        # The default is no request for more classes than there are; the rest of a row is empty.
        if config.top > max(classes, DEFAULT_TOP):
            raise ConfigError(f"{runner.name} knows {classes} classes, so --top {config.top} is too many.")
        names = runner.facts.class_names if runner.facts else None
        self._names = (read_labels(config.labels, classes) if config.labels
                       else names or tuple(str(number) for number in range(classes)))

    def predict(self, images: Sequence[DecodedImage | UnreadableImage]) -> list[Prediction]:
        """One row per image, in order; the readable images are run as one batch."""
        readable = [image for image in images if isinstance(image, DecodedImage)]
        rows = iter(self._rows(readable))
        return [Prediction(image.name, error=" ".join(image.error.split()) or "it cannot be read")
                if isinstance(image, UnreadableImage) else next(rows) for image in images]

    def _rows(self, images: Sequence[DecodedImage]) -> list[Prediction]:
        if not images:
            return []
        logits = run_in_batches(self._runner, np.stack([image.pixels for image in images]), self._config.batch).logits
        best = np.argsort(-logits, axis=1, kind="stable")[:, :self._config.top]                # [B, top]
        probabilities = np.take_along_axis(softmax(logits), best, axis=1).astype(np.float32)   # [B, top]
        finite = np.asarray(np.isfinite(logits).all(axis=1))                                   # [B]
        return [Prediction(image.name, tuple(self._names[k] for k in ranked), tuple(row), turned=image.turned)
                if is_finite else Prediction(image.name, error=NO_NUMBER, turned=image.turned)
                for image, ranked, row, is_finite in zip(images, best.tolist(), probabilities.tolist(), finite)]


@contextmanager
def predict_here(artifact: str, config: PredictConfig, load: LoadConfig) -> Iterator[PredictChunks]:
    """Yields a `PredictChunks` that runs in this process, and decodes the next images meanwhile."""
    with open_runner(artifact, load=load, device=config.device) as runner:
        predictor = Predictor(runner, config, load)

        def predict_chunks(chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, list[Prediction]]]:
            started = deque[Chunk]()

            def items() -> Iterator[tuple[str, ImageReader]]:
                for chunk in chunks:
                    started.append(chunk)
                    yield from ((place.name, place.read) for place in chunk)

            with closing(read_images(items(), predictor.spec, 2 * config.batch)) as images:
                while batch := list(islice(images, config.batch)):
                    yield started.popleft(), predictor.predict(batch)
        yield predict_chunks
