"""Runs ONNX files of image classifiers, written by dyvit or not, with ONNX Runtime."""
from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts.facts import METADATA_KEY, ArtifactFacts
from ..artifacts.files import native_path, require_file
from ..artifacts.locks import scratch_folder
from ..errors import ArtifactError, BackendError, ConfigError, did_you_mean, is_out_of_memory, reason
from ..graph.files import data_files, fits_one_file, has_data, weight_bytes, write_graph
from ..graph.read import Graph, graph_facts
from ..machine.processes import gpu_number
from ..machine.tf32 import require_full_float32
from ..optional import require
from .base import Outputs, Runner, TensorSpec
from .emulation import in_float32
from .profiling import LayerTime, onnxruntime_layers

DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
# Precisions that ONNX Runtime has no CPU kernels for.
EMULATED = ("bfloat16", "float8")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# By default float32 products round their inputs on a GPU.
PROVIDER_OPTIONS = {"cpu": {}, "cuda": {"use_tf32": "0"}}
# NVIDIA's, on Linux and Windows.
DRIVERS = ("libcuda.so.1", "nvcuda.dll")


def _provider_options(device: str) -> dict[str, str]:
    """Of several processes, each takes its own GPU."""
    return PROVIDER_OPTIONS[device] | ({"device_id": str(gpu_number())} if device == "cuda" else {})


@functools.cache
def cuda_works() -> bool:
    """True when ONNX Runtime really opens a session on CUDA.

    A listed provider is no proof: where a library is missing, the session is opened on the CPU.
    """
    ort = require("onnxruntime")
    if PROVIDERS["cuda"] not in ort.get_available_providers() or not _driver_loads():
        return False
    # From the nvidia wheels that torch brings.
    ort.preload_dlls()
    helper = require("onnx").helper
    value, result = (helper.make_tensor_value_info(name, 1, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [value], [result])
    probe = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(probe.SerializeToString(), options, providers=[PROVIDERS["cuda"]],
                                       enable_fallback=0)
    except failures():
        return False
    return PROVIDERS["cuda"] in session.get_providers()


def _driver_loads() -> bool:
    """True when the loader finds NVIDIA's driver, which the cache of ldconfig need not know."""
    for name in DRIVERS:
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)
            return True
    return False


class OrtRunner(Runner):
    """One ONNX Runtime session on "cpu" or "cuda"; `threads` 0 uses all cores.

    A bfloat16 or float8 graph for which the device has no kernels is emulated on the CPU, unless CUDA was asked for.
    `watch` names tensors inside the graph that `tensors` gives. A graph in memory is opened as it is; `path` is then
    its name in messages.
    """

    backend = "ONNX Runtime"

    def __init__(self, path: str | Path | Graph, device: str | None = None, threads: int = 0,
                 watch: Sequence[str] = ()) -> None:
        graph = Graph.of(path)
        path = graph.path if graph.in_memory else require_file(graph.path)
        if device not in (None, *PROVIDERS):
            raise ConfigError(f"Unknown device {device!r}.{did_you_mean(str(device), PROVIDERS)}")
        if device == "cuda" and not cuda_works():
            raise BackendError("ONNX Runtime finds no working CUDA here; install onnxruntime-gpu, its CUDA libraries "
                               "and the NVIDIA driver, or pass --device cpu.")
        self.device = device or ("cuda" if cuda_works() else "cpu")
        if self.device == "cuda":
            require_full_float32()
        self._path, self._threads, self._watch = path, threads, list(watch)
        self._folders = contextlib.ExitStack()
        # What a session is opened from.
        self._model = self._content(graph.proto) if graph.in_memory else _file(graph.path)
        try:
            self._session = self._open(self._watched(graph) if watch else self._model)
        except failures() as error:
            self._session = self._emulate(graph, asked=device)
            if self._session is None:
                raise ArtifactError(f"{path} is not an ONNX model that ONNX Runtime can load on the {self.device} "
                                    f"({reason(error)}); make or copy it again"
                                    + (", or pass --device cpu." if self.device == "cuda" else ".")) from error
        self.name = path.name
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        self.facts = ArtifactFacts.from_json(text, str(path)) if text else None
        self.input = self._input_spec(path)
        names = [output.name for output in self._session.get_outputs() if output.name not in self._watch]
        self._kept = [name for name in names if name.startswith("kept_")] if self.facts else []
        self._logits = "logits" if "logits" in names else self._first_scores(path)

    def _content(self, proto: Any) -> str | bytes:
        """What a session of a graph in memory is opened from: bytes, or files where those do not suffice."""
        if fits_one_file(weight_bytes(proto)):
            content: bytes = proto.SerializeToString()
            return content
        return self._draft(proto)

    def _draft(self, proto: Any, folder: str | None = None) -> str:
        """A file of `proto` for as long as this runner is open; see `write_graph`."""
        place = self._folders.enter_context(scratch_folder("session"))
        write_graph(proto, place / "model.onnx", folder)
        return native_path(place / "model.onnx")

    def _watched(self, graph: Graph) -> str | bytes:
        """What a session that also gives the tensors of `watch` is opened from."""
        proto = _with_outputs(graph, self._watch)
        return self._draft(proto, graph.folder) if has_data(proto) else self._content(proto)

    def _options(self) -> Any:
        options = require("onnxruntime").SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        # An idle session's threads would otherwise spin on into the run of the next one, which bench times.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return options

    def _open(self, model: str | bytes, options: Any = None) -> Any:
        """A session on this device that never moves to another one: ONNX Runtime would retry a call that fails on
        CUDA on the CPU, and go on there.

        Raises:
            BackendError: it is not on this device.
        """
        provider = PROVIDERS[self.device]
        session = require("onnxruntime").InferenceSession(
            model, options or self._options(), providers=[provider],
            provider_options=[_provider_options(self.device)], enable_fallback=0)
        if session.get_providers()[0] != provider:
            raise BackendError(f"ONNX Runtime opened {self._path} on {session.get_providers()[0]} where {provider} was "
                               "asked for; look at dyvit doctor, or pass --device cpu.")
        return session

    def timed_call(self, feed: NDArray[Any], transfers: bool) -> Callable[[], Any]:
        """See `Runner`; on CUDA, no node may run on the CPU while it is timed.

        Raises:
            BackendError: some would.
        """
        if self.device == "cpu":
            return super().timed_call(feed, transfers)
        self.input.check(feed, self.name)
        session, feed = self._timing_session(len(feed)), np.ascontiguousarray(feed)
        names = [self._logits, *self._kept]
        binding = session.io_binding()
        value = require("onnxruntime").OrtValue.ortvalue_from_numpy(feed, "cuda", gpu_number())
        binding.bind_ortvalue_input(self.input.name, value)
        for name in names:
            binding.bind_output(name, "cuda", gpu_number())

        def call() -> None:
            try:
                if transfers:
                    session.run(names, {self.input.name: feed})
                else:
                    session.run_with_iobinding(binding)
                    binding.synchronize_outputs()
            except failures() as error:
                raise self._failed(len(feed), error) from error
        return call

    def _timing_session(self, batch: int) -> Any:
        """A session on CUDA that has no node on the CPU, for this batch size only: with a free one, ONNX Runtime
        computes the shapes that depend on it on the CPU."""
        options = self._options()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        free = self._session.get_inputs()[0].shape[0]
        if isinstance(free, str):
            options.add_free_dimension_override_by_name(free, batch)
        try:
            return self._open(self._model, options)
        except failures() as error:
            raise BackendError(f"ONNX Runtime would run a part of {self.name} on the CPU ({reason(error)}), so its "
                               "time is not that of the GPU; time it with --device cpu, or build an engine of it."
                               ) from error

    def layer_times(self, feed: NDArray[Any], runs: int) -> list[LayerTime]:
        """See `Runner`; in a session of its own, because ONNX Runtime profiles a session as a whole."""
        self.input.check(feed, self.name)
        if self.device == "cuda":
            raise BackendError(f"ONNX Runtime launches the kernels of {self.name} on CUDA and does not wait for them, "
                               "so its times per node are those of launches; profile it with --device cpu, or with "
                               "Nsight Systems.")
        options = self._options()
        try:
            with scratch_folder("profile") as folder:
                options.enable_profiling, options.profile_file_prefix = True, str(folder / "ort")
                return onnxruntime_layers(self._open(self._model, options), {self.input.name: feed}, runs)
        except failures() as error:
            raise BackendError(f"ONNX Runtime cannot profile {self.name} here ({reason(error)}); profile its float32 "
                               "graph.") from error

    def _input_spec(self, path: Path) -> TensorSpec:
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in DTYPES or len(inputs[0].shape) != 4:
            kinds = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise ArtifactError(f"{path} takes {kinds or 'no input'}; only models with one float or uint8 image "
                                "input of four dimensions can be run here.")
        shape = tuple(side if isinstance(side, int) and side > 0 else None for side in inputs[0].shape)
        return TensorSpec(inputs[0].name, DTYPES[inputs[0].type], shape)

    def _first_scores(self, path: Path) -> str:
        for output in self._session.get_outputs():
            if output.type in ("tensor(float)", "tensor(float16)") and len(output.shape) == 2:
                return str(output.name)
        raise ArtifactError(f"{path} has no float output of two dimensions; only classifiers can be run here.")

    def _emulate(self, graph: Graph, asked: str | None) -> Any:
        """A session on the CPU that rounds as the graph's precision does; None where there is no such thing, or where
        CUDA was `asked` for."""
        try:
            facts = graph_facts(graph.structure, str(graph.path))
        # Then there is nothing to emulate.
        except ArtifactError:
            return None
        if asked == "cuda" or facts is None or facts.precision not in EMULATED:
            return None
        self.device, self.emulated = "cpu", True
        options = self._options()
        # Its optimizer would fuse float8 tensors into operators that take none.
        options.graph_optimization_level = require("onnxruntime").GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            return self._open(self._watched(Graph(graph.path, in_float32(graph.proto))), options)
        except failures():
            return None

    def _run(self, names: list[str], feed: NDArray[Any]) -> list[NDArray[Any]]:
        try:
            outputs: list[NDArray[Any]] = self._session.run(names, {self.input.name: np.ascontiguousarray(feed)})
        except failures() as error:
            raise self._failed(len(feed), error) from error
        return outputs

    def _failed(self, batch: int, error: Exception) -> BackendError:
        fix = "use a smaller batch" if is_out_of_memory(error) else "check its input, or export it again"
        return BackendError(f"ONNX Runtime could not run {self.name} at batch {batch}: {reason(error)}; {fix}.")

    def _infer(self, feed: NDArray[Any]) -> Outputs:
        logits, *kept = self._run([self._logits, *self._kept], feed)
        return Outputs(logits.astype(np.float32, copy=False), tuple(kept))

    def tensors(self, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """The watched tensors for uint8 [B, height, width, 3] RGB images."""
        feed = self.prepare(images)
        inside = [name for name in self._watch if name != self.input.name]
        return {self.input.name: feed} | dict(zip(inside, self._run(inside, feed)))

    def close(self) -> None:
        self._session = None
        self._folders.close()


def _file(path: Path) -> str:
    """The file that a session of the graph `path` is opened from, after a check of its data files."""
    # ONNX Runtime looks for data files beside a link, not beside the graph that it leads to.
    return native_path(path.resolve() if data_files(path) else path)


def _with_outputs(graph: Graph, names: Sequence[str]) -> Any:
    """A copy of the graph's structure, with more tensors among its outputs."""
    onnx = require("onnx")
    helper, proto = onnx.helper, onnx.ModelProto()
    types = graph.types if names else {}
    proto.CopyFrom(graph.structure)
    known = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    proto.graph.output.extend(helper.make_tensor_value_info(name, types[name], None)
                              for name in names if name not in known)
    return proto


def failures() -> tuple[type[Exception], ...]:
    """ONNX Runtime's own exceptions, which share no base class."""
    state = require("onnxruntime.capi.onnxruntime_pybind11_state")
    own = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (*own, RuntimeError)

