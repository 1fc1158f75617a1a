"""A client of a running Triton Inference Server, over HTTP or gRPC."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, reason
from ..graph.read import Tensor
from ..optional import require
from ..runners.base import Outputs, Runner, TensorSpec
from .interface import Servable
from .server import UNREACHABLE, get_json

TYPES = {"float32": "FP32", "float64": "FP64", "float16": "FP16", "uint8": "UINT8", "int64": "INT64", "object": "BYTES"}


class Refused(BackendError):
    """The server refused a request with an error."""


@dataclass(frozen=True)
class Address:
    """The addresses of a server, each as HOST:PORT; `grpc` is None if not known."""

    http: str
    grpc: str | None = None

    def get(self, path: str) -> Any:
        """The JSON at `path` over HTTP.

        Raises:
            BackendError: the server does not answer, or not with JSON.
        """
        try:
            return get_json(f"http://{self.http}{path}")
        except UNREACHABLE as error:
            raise BackendError(f"Triton does not answer at {self.http}{path} ({reason(error)}).") from error


class Client:
    """One connection to a server; a context manager. It must not be used by several threads at once."""

    def __init__(self, address: Address, protocol: str = "http") -> None:
        self._library = require(f"tritonclient.{protocol}", extra="triton")
        self._failure = require("tritonclient.utils").InferenceServerException
        self._client = self._library.InferenceServerClient(getattr(address, protocol))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._client.close()

    def infer(self, model: str, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str],
              parameters: Mapping[str, Any] | None = None) -> dict[str, NDArray[Any]]:
        """Sends one request; arrays of dtype object hold bytes.

        Raises:
            Refused: the server answers with an error, which the message contains.
            BackendError: the server does not answer.
        """
        inputs = []
        for name, value in feeds.items():
            inputs.append(self._library.InferInput(name, list(value.shape), TYPES[str(value.dtype)]))
            inputs[-1].set_data_from_numpy(value)
        requested = [self._library.InferRequestedOutput(name) for name in outputs]
        try:
            response = self._client.infer(model, inputs, outputs=requested, parameters=dict(parameters or {}) or None)
        except self._failure as error:
            raise Refused(f"Triton refused a request to {model}: {reason(error)}.") from error
        # Of the HTTP client's own exceptions, some are no OSError: a server that stops closes the connection.
        except (OSError, HTTPException) as error:
            raise BackendError(f"Triton does not answer ({reason(error)}); is the server still running?") from error
        return {name: response.as_numpy(name) for name in outputs}


class TritonRunner(Runner):
    """A model of a running server that takes preprocessed tensors; its facts are those of the local artifact."""

    backend, device = "Triton", "server"

    def __init__(self, address: Address, model: str, servable: Servable, protocol: str = "http") -> None:
        self.name, self.facts = f"{model} over {protocol}", servable.facts
        self.input = input_spec(servable.input)
        self._model, self._names = model, [output.name for output in servable.outputs]
        self._client = Client(address, protocol)

    def _infer(self, feed: NDArray[Any]) -> Outputs:
        return to_outputs(self._client.infer(self._model, {self.input.name: np.ascontiguousarray(feed)}, self._names))

    def close(self) -> None:
        self._client.__exit__(None, None, None)


def input_spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.dtype, tensor.shape)


def to_outputs(tensors: Mapping[str, NDArray[Any]]) -> Outputs:
    """The output tensors of a model by name, `logits` and, if it has them, `kept_0`, `kept_1`, ..., as Outputs."""
    # By number: as text, kept_10 comes before kept_2.
    stages = sorted((name for name in tensors if name.startswith("kept_")), key=lambda name: int(name[5:]))
    kept = [tensors[name] for name in stages]
    return Outputs(tensors["logits"].astype(np.float32, copy=False), tuple(kept))
