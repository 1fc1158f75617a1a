"""Triton Python-based backend: runs model.onnx or model.xml where a Triton has no backend of its own for it.

`dyvit serve` and `dyvit serve --check` install it as the missing backend, for example in the server of the package
nvidia-pytriton. It is slower than Triton's own backends.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    """All requests of a call run as one batch."""

    def initialize(self, args: dict[str, str]) -> None:
        self._outputs = [output["name"] for output in json.loads(args["model_config"])["output"]]
        folder = Path(args["model_repository"]) / args["model_version"]
        graph = folder / "model.onnx"
        self._run = _onnxruntime(graph, self._outputs) if graph.is_file() else _openvino(folder / "model.xml",
                                                                                        self._outputs)

    def execute(self, requests: list[Any]) -> list[Any]:
        feeds = [triton.get_input_tensor_by_name(request, "images").as_numpy() for request in requests]
        ends = np.cumsum([len(feed) for feed in feeds])[:-1]
        parts = zip(*(np.split(values, ends) for values in self._run(np.concatenate(feeds))))
        return [triton.InferenceResponse([triton.Tensor(name, np.ascontiguousarray(value))
                                          for name, value in zip(self._outputs, part)]) for part in parts]


def _onnxruntime(path: Path, names: list[str]) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(names, {"images": images})


def _openvino(path: Path, names: list[str]) -> Any:
    import openvino

    facts = json.loads(str(openvino.Core().read_model(str(path)).get_rt_info("dyvit").astype(str)))
    precision = (facts.get("lowered") or {}).get("rest") or facts["precision"]
    hint = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32"}
    request = openvino.Core().compile_model(str(path), "CPU", hint).create_infer_request()

    def run(images: np.ndarray) -> list[np.ndarray]:
        found = request.infer({0: images})
        return [found[name].copy() for name in names]
    return run
