"""Runs checkpoints with PyTorch: the reference for exported artifacts, and a backend that bench times."""
from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from ..artifacts.facts import ArtifactFacts
from ..config import LoadConfig
from ..errors import BackendError, ConfigError, did_you_mean, reason
from ..machine.tf32 import full_float32, require_full_float32
from ..model.checkpoint import load_model
from ..model.dynamicvit import DynamicViT
from ..model.forms import inference_form
from .base import Outputs, Runner, TensorSpec
from .cuda import Cuda
from .gpu_stream import GpuStream

DEVICES = ("cpu", "cuda")


def torch_device(name: str | None) -> torch.device:
    """The device called `name`; None means CUDA if it works, else the CPU.

    Raises:
        ConfigError: `name` is neither "cpu" nor "cuda".
        BackendError: CUDA does not work on this machine.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in DEVICES:
        raise ConfigError(f"Unknown device {name!r}.{did_you_mean(name, DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendError("PyTorch finds no CUDA device here; install a driver, or pass --device cpu.")
    return torch.device(name)


class PyTorchRunner(Runner):
    """Inference with tokens removed.

    `model` is computed in the precision of its parameters, scores included. With `graph`, each batch size is captured
    once as a CUDA graph and replayed; the outputs then have logits only. `cuda` replaces the GPU in tests.
    """

    backend = "PyTorch"

    def __init__(self, model: DynamicViT, facts: ArtifactFacts, name: str = "model", *, graph: bool = False,
                 cuda: Cuda | None = None) -> None:
        parameter = next(model.parameters())
        self._dtype = parameter.dtype
        self.model, self.name, self.device = model, name, parameter.device.type
        self.facts = dataclasses.replace(facts, precision=str(self._dtype).removeprefix("torch."))
        self.input = TensorSpec("images", "float32", (None, 3, *facts.model.image_size))
        self._graph, self._cuda = graph, cuda or (Cuda() if self.device == "cuda" else None)
        self._stream: GpuStream | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], load: LoadConfig = LoadConfig(), like: ArtifactFacts | None = None,
             device: str | None = None) -> PyTorchRunner:
        """Opens a checkpoint on `device`; see `torch_device` and `load_model`.

        Raises:
            ConfigError: a CUDA graph is requested on a CPU.
            BackendError: the environment lets the GPU round the operands of float32 products.
        """
        target = torch_device(device)
        if load.engine.cuda_graph and target.type != "cuda":
            raise ConfigError(f"A CUDA graph of {path} needs a GPU that works, and it would run on the CPU; leave out "
                              "--cuda-graph.")
        if target.type == "cuda" and load.precision == "float32":
            require_full_float32()
        model, facts = load_model(path, load, like)
        name = Path(path).name
        # A published file may hold two sets of weights.
        if not name.endswith(".safetensors") and facts.parent:
            name += f" ({facts.parent['weights']} weights)"
        if load.engine.cuda_graph and load.engine.rewrites:
            model, forms = inference_form(model, fused_attention=True)
            facts = dataclasses.replace(facts, forms=forms)
        model = model.to(target, getattr(torch, load.precision))
        return cls(model, facts, name, graph=load.engine.cuda_graph)

    @property
    def cuda_graph(self) -> bool | None:
        """See `Runner`."""
        return self._stream is not None and self._stream.captured if self._graph else None

    @property
    def capture_error(self) -> str:
        """See `Runner`."""
        return self._stream.capture_error if self._stream else ""

    def _infer(self, feed: NDArray[Any]) -> Outputs:
        with _evaluating(self.model), self._translated_errors(len(feed)):
            if self._graph:
                stream = self._ready(feed.shape)
                stream.upload(feed)
                stream.launch()
                return Outputs(stream.download(["logits"])[0])
            with torch.inference_mode(), full_float32():
                out = self.model.forward_pruned(torch.from_numpy(feed).to(self.device, self._dtype))
            return Outputs(out.logits.float().cpu().numpy(), tuple(k.cpu().numpy() for k in out.kept),
                           tuple(s.float().cpu().numpy() for s in out.scores))

    def timed_call(self, feed: NDArray[Any], transfers: bool) -> Callable[[], Any]:
        """See `Runner.timed_call`. On a GPU the model computes logits only, on a stream of its own."""
        if self._cuda is None:
            return super().timed_call(feed, transfers)
        self.input.check(feed, self.name)
        self.model.eval()
        with self._translated_errors(len(feed)):
            stream = self._ready(feed.shape)
            stream.upload(feed)

        def call() -> None:
            with self._translated_errors(len(feed)):
                if transfers:
                    stream.upload(feed)
                stream.launch()
                if transfers:
                    stream.download(["logits"])
                stream.torch_stream.synchronize()
        return call

    def gpu_ms(self, feed: NDArray[Any], runs: int) -> dict[str, list[float]]:
        """See `GpuStream.timed`; empty on a CPU."""
        if self._cuda is None:
            return {}
        with self._translated_errors(len(feed)):
            return self._ready(feed.shape).timed(["logits"], feed, runs)

    def close(self) -> None:
        """Frees the graph and the buffers."""
        self._stream = None

    def _ready(self, shape: tuple[int, ...]) -> GpuStream:
        """The stream, prepared for inputs of this shape."""
        assert self._cuda is not None
        if self._stream is None:
            self._stream = GpuStream(_ModelProgram(self.model, self._cuda), self._cuda)
        if self._stream.shape != shape:
            self._stream.prepare(shape, self.input, self._graph)
        return self._stream

    @contextlib.contextmanager
    def _translated_errors(self, batch: int) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise BackendError(f"PyTorch could not run {self.name} at batch {batch} ({reason(error)}); try a smaller "
                               "batch.") from error


class _ModelProgram:
    """A PyTorch model as a `Program`, with float32 logits as its output."""

    def __init__(self, model: DynamicViT, cuda: Cuda) -> None:
        self._model, self._cuda = model, cuda
        self.input_dtype = str(next(model.parameters()).dtype).removeprefix("torch.")

    def prepare(self, shape: tuple[int, ...], stream: Any) -> list[TensorSpec]:
        return [TensorSpec("logits", "float32", (shape[0], self._model.config.classes))]

    def bind(self, tensors: Mapping[str, Any]) -> None:
        self._images, self._logits = tensors["images"], tensors["logits"]

    def enqueue(self, stream: Any) -> None:
        with self._cuda.within(stream), torch.inference_mode(), full_float32():
            self._logits.copy_(self._model(self._images))


@contextlib.contextmanager
def _evaluating(model: DynamicViT) -> Iterator[None]:
    """Puts the model into evaluation mode within the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
