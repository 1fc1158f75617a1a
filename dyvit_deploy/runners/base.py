"""The interface of a runner: what it takes and what it gives."""
from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..artifacts.facts import ArtifactFacts
from ..config import ImageSpec
from ..data.preprocess import normalise
from ..errors import ArtifactError, BackendError, ConfigError
from ..settings.preprocessing import Preprocess
from .profiling import LayerTime

Self = TypeVar("Self", bound="Runner")


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: its name, its data type ("float32", "float16", ...), and its shape, with None for free
    dimensions."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def check(self, feed: NDArray[Any], owner: str) -> None:
        """Raises BackendError, naming the artifact `owner`, when `feed` does not fit."""
        fits = len(feed.shape) == len(self.shape) and all(w in (None, h) for w, h in zip(self.shape, feed.shape))
        if not fits or feed.dtype != self.dtype:
            wanted = ", ".join("any" if side is None else str(side) for side in self.shape)
            raise BackendError(f"Input {self.name!r} of {owner} takes {self.dtype} [{wanted}], "
                               f"not {feed.dtype} {list(feed.shape)}.")


@dataclass(frozen=True)
class ForeignImages:
    """The `ImageSpec` of a file without dyvit's metadata."""

    image_size: tuple[int, int]
    preprocess: Preprocess
    orient: bool = False


class Outputs(NamedTuple):
    """What a runner computes.

    logits: float32 [B, classes].
    kept: per stage int64 [B, K_s], patches in the original grid; empty when the artifact does not output them.
    scores: per stage float32 [B, N]; empty when the backend does not output them.
    """

    logits: NDArray[np.float32]
    kept: tuple[NDArray[np.int64], ...] = ()
    scores: tuple[NDArray[np.float32], ...] = ()


class Runner(abc.ABC):
    """Runs one artifact on one backend; a context manager, because backends hold memory.

    `name` is for tables, `backend` names the library, `device` is "cpu" or "cuda". `facts` is None for files that
    dyvit did not write. `emulated` means that the backend rounds as the artifact's precision does, but computes in
    float32: accuracy can be measured, speed cannot.
    """

    name: str
    backend: str
    device: str
    facts: ArtifactFacts | None
    input: TensorSpec
    emulated = False
    # For files without dyvit's metadata; ImageNet's by default.
    assumed_preprocess = Preprocess()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027  most backends hold nothing
        """Frees what the backend holds."""

    @property
    def label(self) -> str:
        """Library and device, for tables."""
        return f"{self.backend} {self.device}" + (", emulated" if self.emulated else "")

    @property
    def cuda_graph(self) -> bool | None:
        """None unless a CUDA graph was asked for, else whether the batch size that ran last is replayed as one."""
        return None

    @property
    def capture_error(self) -> str:
        """Why a requested CUDA graph could not be captured; empty if it was."""
        return ""

    @property
    def precision(self) -> str:
        """The precision of the products, as the artifact records it; float32 for files that dyvit did not write."""
        return self.facts.precision if self.facts else "float32"

    @property
    def preprocess(self) -> Preprocess:
        """The artifact's own preprocessing, or the assumed one."""
        return self.facts.model.preprocess if self.facts else self.assumed_preprocess

    def image_spec(self, image_size: tuple[int, int] | None = None) -> ImageSpec:
        """How images must be prepared for this artifact.

        A file without dyvit's metadata has an input size at most; `image_size` is used where that is free.

        Raises:
            ArtifactError: its facts and its input have different sizes.
            BackendError: the size is neither in the file nor given.
        """
        shape = self.input.shape
        sides = (shape[1:3] if self.input.dtype == "uint8" else shape[2:]) if len(shape) == 4 else ()
        if self.facts:
            claimed = self.facts.model.image_size
            # Metadata that were changed would have images prepared, and pixels in memory, that nothing can run.
            if sides and None not in sides and sides != claimed:
                raise ArtifactError(f"The metadata of {self.name} are of another model: its images have {claimed[0]} x "
                                    f"{claimed[1]} px, and its input {sides[0]} x {sides[1]}; export it again.")
            return self.facts.model
        height, width = image_size or (*sides, None, None)[:2]
        if height is None or width is None:
            raise BackendError(f"{self.name} does not say what size its images have; pass --image-size.")
        return ForeignImages((height, width), self.preprocess)

    def infer(self, feed: NDArray[Any]) -> Outputs:
        """Runs one batch.

        Args:
            feed: as `input` says: float [B, 3, height, width] normalised, or uint8 [B, height, width, 3].

        Raises:
            BackendError: the feed does not fit, or the backend failed.
        """
        self.input.check(feed, self.name)
        return self._infer(feed)

    def predict(self, images: NDArray[np.uint8]) -> Outputs:
        """Runs uint8 [B, height, width, 3] RGB images, normalised here unless the graph does it."""
        return self.infer(self.prepare(images))

    def prepare(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """uint8 [B, height, width, 3] RGB images as the feed of `infer`."""
        return images if self.input.dtype == "uint8" else normalise(images, self.preprocess).astype(self.input.dtype)

    def check_batch(self, batch: int) -> None:
        """Raises ConfigError, or BackendError, when this artifact cannot be timed at `batch` images."""
        fixed = self.input.shape[0]
        if fixed not in (None, batch):
            raise ConfigError(f"{self.name} takes batches of {fixed} only; pass --batch {fixed}.")

    def timed_call(self, feed: NDArray[Any], transfers: bool) -> Callable[[], Any]:
        """The call that bench times for one batch; it returns when the batch is done.

        On a GPU, the batch is already in its memory and the outputs stay there, unless `transfers` is True.

        Raises:
            BackendError: the feed does not fit, or the backend failed.
        """
        return lambda: self.infer(feed)

    def gpu_ms(self, feed: NDArray[Any], runs: int) -> dict[str, list[float]]:
        """Milliseconds per phase, measured by the GPU's own events; empty for runners without a GPU.

        Raises:
            BackendError: the feed does not fit, or the backend failed.
        """
        return {}

    def layer_times(self, feed: NDArray[Any], runs: int) -> list[LayerTime]:
        """The median time in ms of each layer of the compiled graph over `runs` runs on `feed`, in running order.

        Raises:
            BackendError: this backend has no times of single layers.
        """
        raise BackendError(f"{self.backend} does not report times of single layers here; profile {self.name} as "
                           "an ONNX or OpenVINO artifact.")

    @abc.abstractmethod
    def _infer(self, feed: NDArray[Any]) -> Outputs: ...


def join_outputs(parts: Sequence[Outputs]) -> Outputs:
    """The outputs of consecutive batches as those of one."""
    return Outputs(np.concatenate([part.logits for part in parts]),
                   tuple(np.concatenate(stage) for stage in zip(*(part.kept for part in parts))),
                   tuple(np.concatenate(stage) for stage in zip(*(part.scores for part in parts))))


def take(outputs: Outputs, rows: NDArray[np.int64] | slice) -> Outputs:
    """The outputs of some of the images."""
    return Outputs(outputs.logits[rows], tuple(stage[rows] for stage in outputs.kept),
                   tuple(stage[rows] for stage in outputs.scores))


def run_in_batches(runner: Runner, images: NDArray[np.uint8], batch: int) -> Outputs:
    """`runner.predict` on uint8 [B, height, width, 3] in batches of `batch`.

    An artifact with a fixed batch size runs at that instead, its last part padded.
    """
    fixed = runner.input.shape[0]
    parts = []
    for start in range(0, len(images), fixed or batch):
        part = images[start:start + (fixed or batch)]
        padding = np.zeros(((fixed or len(part)) - len(part), *part.shape[1:]), np.uint8)
        parts.append(take(runner.predict(np.concatenate([part, padding])), slice(len(part))))
    return join_outputs(parts)
