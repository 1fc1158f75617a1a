"""Runs ONNX files, ours or any image classifier, with ONNX Runtime."""
from __future__ import annotations

import ctypes.util
import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import METADATA_KEY, ArtifactFacts, require_file
from ..errors import ArtifactError, BackendError, ConfigError, did_you_mean
from ..optional import require
from .base import InputSpec, Outputs, Runner

DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@functools.cache
def cuda_works() -> bool:
    """True when ONNX Runtime really gets a session on CUDA.

    A listed provider is no proof: without a driver or with a library missing, the session silently
    falls back to the CPU.
    """
    ort = require("onnxruntime")
    driver = ctypes.util.find_library("cuda") or ctypes.util.find_library("nvcuda")
    if PROVIDERS["cuda"] not in ort.get_available_providers() or driver is None:
        return False
    ort.preload_dlls()                                                     # from the nvidia wheels that torch brings
    helper = require("onnx").helper
    value, result = (helper.make_tensor_value_info(name, 1, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [value], [result])
    probe = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(probe.SerializeToString(), options, providers=[PROVIDERS["cuda"]])
    return PROVIDERS["cuda"] in session.get_providers()


class OrtRunner(Runner):
    """One ONNX Runtime session on "cpu" or "cuda"; `threads` 0 uses all cores."""

    backend = "ONNX Runtime"

    def __init__(self, path: str | Path, device: str | None = None, threads: int = 0) -> None:
        ort = require("onnxruntime")
        path = require_file(path)
        if device not in (None, *PROVIDERS):
            raise ConfigError(f"Unknown device {device!r}.{did_you_mean(str(device), PROVIDERS)}")
        if device == "cuda" and not cuda_works():
            raise BackendError("ONNX Runtime finds no working CUDA here; install onnxruntime-gpu, its CUDA libraries "
                               "and the NVIDIA driver, or pass --device cpu.")
        self.device = device or ("cuda" if cuda_works() else "cpu")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # An idle session's threads would otherwise spin on into the run of the next one, which bench times.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=[PROVIDERS[self.device]])
        except _failures() as error:
            raise ArtifactError(f"{path} is not an ONNX model that ONNX Runtime can load ({_first_line(error)}); "
                                "make or copy it again.") from error
        self.name = path.name
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        self.facts = ArtifactFacts.from_json(text, str(path)) if text else None
        self.input = self._input_spec(path)
        names = [output.name for output in self._session.get_outputs()]
        self._kept = [name for name in names if name.startswith("kept_")] if self.facts else []
        self._logits = "logits" if "logits" in names else self._first_scores(path)

    def _input_spec(self, path: Path) -> InputSpec:
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in DTYPES or len(inputs[0].shape) != 4:
            kinds = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise ArtifactError(f"{path} takes {kinds or 'no input'}; only models with one float32 or uint8 image "
                                "input of four dimensions can be run here.")
        shape = tuple(side if isinstance(side, int) and side > 0 else None for side in inputs[0].shape)
        return InputSpec(inputs[0].name, DTYPES[inputs[0].type], shape)

    def _first_scores(self, path: Path) -> str:
        for output in self._session.get_outputs():
            if output.type == "tensor(float)" and len(output.shape) == 2:
                return str(output.name)
        raise ArtifactError(f"{path} has no float32 output of two dimensions; only classifiers can be run here.")

    def _infer(self, feed: NDArray[Any]) -> Outputs:
        try:
            feeds = {self.input.name: np.ascontiguousarray(feed)}
            logits, *kept = self._session.run([self._logits, *self._kept], feeds)
        except _failures() as error:
            raise BackendError(f"ONNX Runtime could not run {self.name} at batch {len(feed)}: "
                               f"{_first_line(error)}; check its input, or export it again.") from error
        return Outputs(logits, tuple(kept))

    def close(self) -> None:
        self._session = None


def _failures() -> tuple[type[Exception], ...]:
    """ONNX Runtime's own exceptions, which share no base class."""
    state = require("onnxruntime.capi.onnxruntime_pybind11_state")
    own = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (*own, RuntimeError)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
