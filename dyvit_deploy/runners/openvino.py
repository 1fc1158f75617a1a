"""Runs OpenVINO IR (.xml with its .bin) on the CPU."""
from __future__ import annotations

import collections
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts.facts import METADATA_KEY, ArtifactFacts
from ..artifacts.files import require_file, sha256
from ..errors import ArtifactError, BackendError, ConfigError, reason
from ..graph.read import PRODUCTS
from ..machine.openvino import HINTS, core, cpu_has_bfloat16
from .base import Outputs, Runner, TensorSpec
from .fusions import Fusions, openvino_fusions
from .profiling import LayerTime, openvino_layers

WEIGHTS_KEY = "dyvit_weights_sha256"
DTYPES = {"f32": "float32", "f16": "float16", "u8": "uint8"}
PRODUCT_LAYERS = ("FullyConnected", "Convolution", "MatMul")
# A layer that is named after its ONNX node.
PRODUCT = re.compile(rf".*({'|'.join(PRODUCTS)})(_\d+)?")
# A layer that is named after its ONNX node and an operation that the node was converted to.
INSIDE = re.compile(rf"(?P<node>.*?/({'|'.join(PRODUCTS)})(_\d+)?)(/.*)?")
COMPILED = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "i8": "int8", "u8": "int8"}
# Input shapes whose compiled models stay in memory; each holds its own copy of the weights.
KEPT_COMPILED = 4


def read_openvino(path: str | Path) -> tuple[Any, ArtifactFacts | None]:
    """The model in `path` (.xml, with its .bin) and the facts recorded in it.

    Raises:
        ArtifactError: one of the two files is missing or damaged, or they do not belong together.
    """
    path = require_file(path)
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ArtifactError(f"{weights} is missing; an OpenVINO model is two files: copy both, or repeat the "
                            "export if it was interrupted.")
    try:
        model = core().read_model(str(path))
    except RuntimeError as error:
        raise ArtifactError(f"{path} is not an OpenVINO model that can be read ({reason(error, last=True)}); "
                            "make or copy it again, with its .bin.") from error
    text = _rt_info(model, METADATA_KEY)
    if text and _rt_info(model, WEIGHTS_KEY) != sha256(weights):
        raise ArtifactError(f"{weights} is not the file that {path.name} was written with; copy both again, or repeat "
                            "the export if it was interrupted.")
    return model, ArtifactFacts.from_json(text, str(path)) if text else None


class OpenVINORunner(Runner):
    """One model on the CPU, compiled for each input shape; `threads` 0 uses all cores.

    Compiled for any batch size instead, deit-s is 1 to 11 % slower. The precision is the one recorded at export: by
    default, OpenVINO would compute a float32 model in bfloat16 on CPUs that support it.
    """

    backend, device = "OpenVINO", "cpu"

    def __init__(self, path: str | Path, device: str | None = None, threads: int = 0) -> None:
        if device not in (None, "cpu"):
            raise ConfigError(f"OpenVINO models run on the CPU here, not on {device!r}; pass --device cpu.")
        path = Path(path)
        model, self.facts = read_openvino(path)
        rest = (self.facts.lowered or {}).get("rest") if self.facts else None
        hint = HINTS.get(rest or self.precision, "f32")
        if self.precision == "bfloat16" and not cpu_has_bfloat16():
            raise BackendError(f"{path} is for bfloat16, which this CPU does not have; export it with --int8, or in "
                               "float32.")
        self._options = {"INFERENCE_PRECISION_HINT": hint} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
        self._model, self._requests = model, dict[tuple[int, ...], Any]()
        self._compiled_layers: list[tuple[str, ...]] | None = None
        self.name = path.name
        self.input = _input_spec(model, path)
        names = [name for output in model.outputs for name in output.names]
        self._logits = "logits" if "logits" in names else 0
        stages = len(self.facts.keep_counts or ()) if self.facts else 0
        self._kept = [name for name in (f"kept_{stage}" for stage in range(stages)) if name in names]

    def _compile(self, shape: tuple[int, ...] | None, **options: Any) -> Any:
        """The model compiled for inputs of `shape`; None for any shape."""
        try:
            model = self._model if shape is None else self._model.clone()
            if shape is not None:
                model.reshape(list(shape))
            return core().compile_model(model, "CPU", self._options | options)
        except RuntimeError as error:
            suffix = "" if shape is None else f" for {' x '.join(map(str, shape))}"
            raise BackendError(f"OpenVINO cannot compile {self.name}{suffix} ({reason(error, last=True)}); check its "
                               "input, or export it again.") from error

    def _request_for(self, shape: tuple[int, ...]) -> Any:
        """The request for inputs of `shape`; the least recently used requests are dropped."""
        request = self._requests.pop(shape, None)
        if request is None:
            request = self._compile(shape).create_infer_request()
        # Inserted again, so that the dict is ordered by last use.
        self._requests[shape] = request
        while len(self._requests) > KEPT_COMPILED:
            del self._requests[next(iter(self._requests))]
        return request

    def _infer(self, feed: NDArray[Any]) -> Outputs:
        request = self._request_for(feed.shape)
        try:
            outputs = request.infer({0: np.ascontiguousarray(feed)}, share_inputs=True)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO could not run {self.name} at batch {len(feed)} ({reason(error, last=True)}); "
                               "check its input, or export it again.") from error
        return Outputs(outputs[self._logits].astype(np.float32, copy=False),
                       tuple(outputs[name] for name in self._kept))

    def layer_times(self, feed: NDArray[Any], runs: int) -> list[LayerTime]:
        """See `Runner`."""
        self.input.check(feed, self.name)
        return openvino_layers(self._compile(feed.shape, PERF_COUNT=True), {0: feed}, runs)

    def compiled_precisions(self) -> dict[str, int]:
        """How many of the graph's products the compiled model computes in each precision."""
        counts: collections.Counter[str] = collections.Counter()
        for kind, precision, names in self._layers():
            # Fused attention is one layer with two products.
            fused = sum(bool(PRODUCT.fullmatch(name)) for name in names.split(","))
            count = max(fused, kind.startswith(PRODUCT_LAYERS)) if kind.startswith((*PRODUCT_LAYERS, "Subgraph")) else 0
            counts[COMPILED.get(precision.lower(), precision)] += count
        return {name: count for name, count in counts.most_common() if count}

    def product_precisions(self) -> dict[str, str]:
        """The precision in which the compiled model computes each of the graph's products, by ONNX node name."""
        precisions: dict[str, str] = {}
        for kind, precision, names in self._layers():
            originals = names.split(",")
            # Fused attention has two products.
            nodes = [name for name in originals if PRODUCT.fullmatch(name)]
            if kind.startswith(PRODUCT_LAYERS) and not nodes:
                inside = next((match for name in originals if (match := INSIDE.fullmatch(name))), None)
                # Otherwise the layer is named after its bias or its output.
                module = originals[0].split("/")[0]
                nodes = [inside["node"] if inside else f"{'head' if module == 'logits' else module}/MatMul"]
            if kind.startswith((*PRODUCT_LAYERS, "Subgraph")):
                precisions |= dict.fromkeys(nodes, COMPILED.get(precision.lower(), precision))
        return precisions

    def fusions(self) -> Fusions:
        """What OpenVINO fuses when it compiles the model on this machine."""
        return openvino_fusions((kind, names) for kind, _, names in self._layers())

    def _layers(self) -> list[tuple[str, ...]]:
        """(type, precision, names of the original layers) of every layer as compiled on this machine; for batch 1 if
        the batch is free."""
        if self._compiled_layers is None:
            keys = ("layerType", "runtimePrecision", "originalLayersNames")
            self._compiled_layers = [tuple(str(op.get_rt_info()[key].astype(str)) for key in keys)
                                     for op in self._compile(self._one_image()).get_runtime_model().get_ops()]
        return self._compiled_layers

    def _one_image(self) -> tuple[int, ...] | None:
        """The input shape for one image, or for the fixed batch; None if the image size is free, too."""
        batch, *rest = self.input.shape
        shape = (batch or 1, *(side or 0 for side in rest))
        return shape if all(shape) else None

    def close(self) -> None:
        self._requests.clear()


def _input_spec(model: Any, path: Path) -> TensorSpec:
    if len(model.inputs) != 1 or len(model.input(0).partial_shape) != 4:
        raise ArtifactError(f"{path} does not take one image input of four dimensions; only image classifiers can be "
                            "run here.")
    value = model.input(0)
    dtype = value.element_type.get_type_name()
    if dtype not in DTYPES:
        raise ArtifactError(f"{path} takes {dtype} images; only float and uint8 ones can be run here.")
    shape = tuple(None if side.is_dynamic else side.get_length() for side in value.partial_shape)
    return TensorSpec(value.any_name, DTYPES[dtype], shape)


def _rt_info(model: Any, key: str) -> str | None:
    return str(model.get_rt_info(key).astype(str)) if model.has_rt_info(key) else None
