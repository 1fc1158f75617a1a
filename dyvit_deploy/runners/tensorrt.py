"""Runs engine plans with TensorRT or TensorRT for RTX.

PyTorch provides memory, streams and CUDA graphs. Polygraphy's runner is not used: it has no pinned buffers, no CUDA
graphs and only one stream, and its documentation says that it is not meant for measurements.
"""
from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts.files import atomic_write, check_target, require_file
from ..config import EngineRunConfig
from ..engine.config import BatchProfile
from ..engine.library import BuilderLibrary, open_library
from ..engine.load import load_engine
from ..engine.network import DATA_TYPES, last
from ..engine.preflight import read_trusted, require_loadable
from ..errors import ArtifactError, BackendError, ConfigError, reason
from .base import Outputs, Runner, TensorSpec
from .cuda import Cuda
from .gpu_stream import GpuStream

log = logging.getLogger(__name__)
IMAGE_TYPES = ("float32", "float16", "uint8")


class TensorRTRunner(Runner):
    """One engine on the GPU; each of `run.streams` streams has its own execution context and buffers.

    Among the profiles that take a batch, the one tuned for the nearest size is used. A batch that no profile takes is
    padded with its first image to the next size that one takes, and the surplus outputs are dropped.
    """

    device = "cuda"

    def __init__(self, path: str | Path, run: EngineRunConfig = EngineRunConfig(), cuda: Cuda | None = None) -> None:
        path = require_file(path)
        spec, sidecar = require_loadable(path, run.trust)
        self._run, self._cuda = run, cuda or Cuda()
        self.backend, self.name = spec.name, path.name
        library = open_library(spec.format)
        host_code = run.trust or bool(sidecar and sidecar.config.version_compatible)
        self._runtime, self._engine = load_engine(library, read_trusted(path, sidecar), str(path), host_code,
                                                  sidecar.rebuild if sidecar else None)
        self._library = library
        self.facts = sidecar.model if sidecar else None
        inputs, self._outputs = _tensors(library, self._engine)
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].dtype not in IMAGE_TYPES:
            listed = "; ".join(f"{i.name} {i.dtype} {list(i.shape)}" for i in inputs)
            raise ArtifactError(f"{path} takes {listed or 'no input'}; only engines with one float or uint8 image "
                                "input of four dimensions can be run here.")
        self.input = inputs[0]
        names = [output.name for output in self._outputs]
        self._logits = "logits" if "logits" in names else self._first_scores(path)
        stages = len(self.facts.keep_counts or ()) if self.facts else 0
        self._kept = [name for name in (f"kept_{stage}" for stage in range(stages)) if name in names]
        self.profiles = tuple(self._profile(i) for i in range(self._engine.num_optimization_profiles))
        self._check_memory(path)
        self._cache: Any = None
        self._settings = self._runtime_settings()
        self._streams = [GpuStream(EngineProgram(self._context(), self.input.name, self._outputs, self.profile_for),
                            self._cuda) for _ in range(run.streams)]

    def _first_scores(self, path: Path) -> str:
        for output in self._outputs:
            if output.dtype in ("float32", "float16") and len(output.shape) == 2:
                return output.name
        raise ArtifactError(f"{path} has no float output of two dimensions; only classifiers can be run here.")

    def _profile(self, index: int) -> BatchProfile:
        least, opt, most = (int(shape[0]) for shape in self._engine.get_tensor_profile_shape(self.input.name, index))
        return BatchProfile(least, opt, most, str(index))

    def _check_memory(self, path: Path) -> None:
        """Raises BackendError, which names the batch that would fit, before CUDA runs out of memory."""
        need = self._engine.device_memory_size_v2 / 2**20 * self._run.streams
        free = self._cuda.free_mib()
        if need > free:
            largest = max(profile.max for profile in self.profiles)
            fits = int(largest * free / need)
            raise BackendError(f"{path} needs {need:.0f} MiB of GPU memory to run and {free:.0f} are free; free some, "
                               f"or build it with --batch 1:{max(1, fits // 2)}:{max(1, fits)}.")

    def _runtime_settings(self) -> Any:
        """Runtime settings of the library; None for TensorRT. TensorRT for RTX caches kernels and captures graphs."""
        if self._library.spec.format != "rtx":
            if self._run.runtime_cache:
                raise ConfigError("TensorRT has no runtime cache; --runtime-cache is for engines of --format rtx.")
            return None
        settings = self._engine.create_runtime_config()
        # By default kernels for a shape are compiled in the background, and until then slower ones run and are timed.
        strategy = self._library.trt.DynamicShapesKernelSpecializationStrategy
        settings.dynamic_shapes_kernel_specialization_strategy = strategy.EAGER
        if self._run.cuda_graph:
            settings.cuda_graph_strategy = self._library.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if self._run.runtime_cache:
            self._cache = settings.create_runtime_cache()
            if (content := _cache_content(self._run.runtime_cache)) and not self._cache.deserialize(content):
                log.warning("the runtime cache %s is damaged or of another GPU; it is replaced",
                            self._run.runtime_cache)
            settings.set_runtime_cache(self._cache)
        return settings

    def _context(self) -> Any:
        make = self._engine.create_execution_context
        context = make() if self._settings is None else make(self._settings)
        if context is None:
            raise BackendError(f"{self.backend} cannot prepare {self.name} ({last(self._library.logger.errors)}); free "
                               "GPU memory, or build it with a smaller largest batch.")
        return context

    def profile_for(self, batch: int) -> int:
        """The index of the profile to use for `batch` images.

        Raises:
            BackendError: no profile takes this batch.
        """
        matching = [i for i, p in enumerate(self.profiles) if p.min <= batch <= p.max]
        if not matching:
            ranges = ", ".join(f"{p.min} to {p.max}" for p in self.profiles)
            least, most = min(batch, *(p.min for p in self.profiles)), max(batch, *(p.max for p in self.profiles))
            raise BackendError(f"Batch {batch} is outside the profiles of {self.name} ({ranges}); choose another "
                               f"batch, or build it with --batch {least}:{batch}:{most}.")
        return min(matching, key=lambda i: abs(self.profiles[i].opt - batch))

    def check_batch(self, batch: int) -> None:
        """See `Runner.check_batch`; batches are not padded for timing."""
        super().check_batch(batch)
        self.profile_for(batch)

    def _infer(self, feed: NDArray[Any]) -> Outputs:
        batch = len(feed)
        if not any(p.min <= batch <= p.max for p in self.profiles):
            larger = [profile.min for profile in self.profiles if profile.min > batch]
            missing = min(larger, default=batch) - batch
            feed = np.concatenate([feed, np.repeat(feed[:1], missing, axis=0)])
        stream = self._ready(self._streams[0], feed.shape)
        with self._translated_errors(batch):
            stream.upload(feed)
            stream.launch()
            downloaded = stream.download([self._logits, *self._kept])
        logits, *kept = (values[:batch] for values in downloaded)
        return Outputs(logits.astype(np.float32), tuple(values.astype(np.int64) for values in kept))

    def _ready(self, stream: GpuStream, shape: tuple[int, ...]) -> GpuStream:
        """`stream`, prepared for inputs of this shape."""
        if stream.shape != shape:
            with self._translated_errors(shape[0]):
                stream.prepare(shape, self.input, graph=self._run.cuda_graph and self._settings is None)
        return stream

    @property
    def cuda_graph(self) -> bool | None:
        """See `Runner`; TensorRT for RTX captures by itself and does not report failures."""
        if not self._run.cuda_graph:
            return None
        return self._settings is not None or all(stream.captured for stream in self._streams)

    @property
    def capture_error(self) -> str:
        """See `Runner`."""
        return next((stream.capture_error for stream in self._streams if stream.capture_error), "")

    @contextlib.contextmanager
    def _translated_errors(self, batch: int) -> Any:
        before = len(self._library.logger.errors)
        try:
            yield
        except self._cuda.out_of_memory() as error:
            raise BackendError(f"The GPU's memory does not suffice for {self.name} at batch {batch}; choose a smaller "
                               "batch, or free the GPU.") from error
        except RuntimeError as error:
            fresh = self._library.logger.errors[before:]
            cause = last(fresh) if fresh else reason(error)
            raise BackendError(f"{self.backend} could not run {self.name} at batch {batch} ({cause}); build it again, "
                               "or run dyvit doctor --target PLAN.") from error

    def timed_call(self, feed: NDArray[Any], transfers: bool) -> Callable[[], Any]:
        """See `Runner.timed_call`. One call launches a batch on each stream and waits for all of them."""
        self.input.check(feed, self.name)
        streams = [self._ready(stream, feed.shape) for stream in self._streams]
        with self._translated_errors(len(feed)):
            for stream in streams:
                stream.upload(feed)

        def call() -> None:
            with self._translated_errors(len(feed)):
                for stream in streams:
                    if transfers:
                        stream.upload(feed)
                    stream.launch()
                for stream in streams:
                    if transfers:
                        stream.download([self._logits, *self._kept])
                    else:
                        stream.torch_stream.synchronize()
        return call

    def gpu_ms(self, feed: NDArray[Any], runs: int) -> dict[str, list[float]]:
        """See `GpuStream.timed`; on one stream."""
        stream = self._ready(self._streams[0], feed.shape)
        with self._translated_errors(len(feed)):
            return stream.timed([self._logits, *self._kept], feed, runs)

    def close(self) -> None:
        """Writes the runtime cache, then frees the contexts, then the engine and the runtime."""
        cache, self._cache = self._cache, None
        content = cache.serialize() if cache is not None else None
        self._streams.clear()
        self._settings = self._engine = self._runtime = None
        if content is not None:
            with atomic_write(str(self._run.runtime_cache)) as temporary:
                temporary.write_bytes(bytes(content))


class EngineProgram:
    """An execution context as a `Program`."""

    input_dtype = None

    def __init__(self, context: Any, source: str, outputs: Sequence[TensorSpec],
                 profile_for: Callable[[int], int]) -> None:
        self._context, self._source, self._outputs, self._profile_for = context, source, outputs, profile_for

    def prepare(self, shape: tuple[int, ...], stream: Any) -> list[TensorSpec]:
        context = self._context
        if not (context.set_optimization_profile_async(self._profile_for(shape[0]), stream.cuda_stream)
                and context.set_input_shape(self._source, shape)):
            raise RuntimeError(f"it does not take the shape {list(shape)}")
        return [dataclasses.replace(output, shape=tuple(int(side) for side in context.get_tensor_shape(output.name)))
                for output in self._outputs]

    def bind(self, tensors: Mapping[str, Any]) -> None:
        for name, tensor in tensors.items():
            self._context.set_tensor_address(name, tensor.data_ptr())

    def enqueue(self, stream: Any) -> None:
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("the engine refused to run")


def _cache_content(path: str) -> bytes:
    """The content of the runtime cache `path`; empty if the file does not exist yet."""
    file = check_target(path)
    try:
        return file.read_bytes() if file.is_file() else b""
    except OSError as error:
        raise ArtifactError(f"The runtime cache {path} cannot be read ({error.strerror or error}); choose another file."
                            ) from error


def _tensors(library: BuilderLibrary, engine: Any) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """The inputs and the outputs of the engine."""
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        kind = str(engine.get_tensor_dtype(name)).rsplit(".", 1)[-1]
        shape = tuple(None if side < 0 else int(side) for side in engine.get_tensor_shape(name))
        spec = TensorSpec(name, DATA_TYPES.get(kind, kind.lower()), shape)
        (inputs if engine.get_tensor_mode(name) == library.trt.TensorIOMode.INPUT else outputs).append(spec)
    return inputs, outputs
