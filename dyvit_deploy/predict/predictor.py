"""One batch of images through a runner, into rows."""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from itertools import islice

import numpy as np

from ..config import LoadConfig
from ..data.listing import ImagePlace
from ..data.reading import DecodedImage, ImageReader, UnreadableImage, read_images
from ..errors import ConfigError
from ..evaluation.metrics import softmax
from ..runners.base import Runner, run_in_batches
from ..runners.open import open_runner
from .config import PredictConfig
from .report import Prediction

Places = list[ImagePlace]
Answer = Callable[[Iterator[Places]], Iterator[tuple[Places, list[Prediction]]]]
Opener = Callable[[str, PredictConfig, LoadConfig], AbstractContextManager[Answer]]
NO_NUMBER = "the model's answer is no number (NaN or infinity)"


class Predictor:
    """Turns images into rows with an open `runner`.

    Raises:
        ConfigError: more classes are asked for than there are.
    """

    def __init__(self, runner: Runner, config: PredictConfig, load: LoadConfig) -> None:
        self.spec = runner.image_spec(load.image_size)
        self._runner, self._config = runner, config
        blank = np.zeros((1, *self.spec.image_size, 3), np.uint8)          # only the logits tell, in others' files
        classes = run_in_batches(runner, blank, 1).logits.shape[1]
        if config.top > classes:
            raise ConfigError(f"{runner.name} knows {classes} classes, so --top {config.top} is too many.")
        known = runner.facts.class_names if runner.facts else None
        self._names = known or tuple(str(number) for number in range(classes))

    def predict(self, images: Sequence[DecodedImage | UnreadableImage]) -> list[Prediction]:
        """A row per image, in order; those that could be read make one batch."""
        found = [image for image in images if isinstance(image, DecodedImage)]
        rows = iter(self._rows(found))
        return [Prediction(image.name, error=" ".join(image.error.split()) or "it cannot be read")
                if isinstance(image, UnreadableImage) else next(rows) for image in images]

    def _rows(self, found: Sequence[DecodedImage]) -> list[Prediction]:
        if not found:
            return []
        logits = run_in_batches(self._runner, np.stack([image.pixels for image in found]), self._config.batch).logits
        best = np.argsort(-logits, axis=1, kind="stable")[:, :self._config.top]               # [B, top]
        shares = np.take_along_axis(softmax(logits), best, axis=1).astype(np.float32)         # [B, top]
        whole = np.asarray(np.isfinite(logits).all(axis=1))                                    # [B]
        return [Prediction(image.name, tuple(self._names[k] for k in ranked), tuple(row))
                if fine else Prediction(image.name, error=NO_NUMBER)
                for image, ranked, row, fine in zip(found, best.tolist(), shares.tolist(), whole)]


@contextmanager
def predict_here(artifact: str, config: PredictConfig, load: LoadConfig) -> Iterator[Answer]:
    """An `Answer` of this process: lists of `config.batch` places in (the last may be shorter), each with its rows out;
    the next images are decoded meanwhile."""
    with open_runner(artifact, load=load, device=config.device) as runner:
        predictor = Predictor(runner, config, load)

        def answer(chunks: Iterator[Places]) -> Iterator[tuple[Places, list[Prediction]]]:
            begun = deque[Places]()

            def items() -> Iterator[tuple[str, ImageReader]]:
                for places in chunks:
                    begun.append(places)
                    yield from ((place.name, place.read) for place in places)

            with closing(read_images(items(), predictor.spec, 2 * config.batch)) as images:
                while batch := list(islice(images, config.batch)):
                    yield begun.popleft(), predictor.predict(batch)
        yield answer
