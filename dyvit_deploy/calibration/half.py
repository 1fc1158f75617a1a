"""float16 and bfloat16 graphs with ModelOpt's AutoCast, chosen on real images.

These stay float32: the keep scores and their TopK, every node whose values come near float16's largest number on the
images, and the input and the logits unless `io` is float16. The kept patches stay int64.
"""
from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts.locks import scratch_folder
from ..data.images import ImageSet, Track, no_track
from ..errors import ExportError
from ..graph.names import SCORE_PATH, on_score_path
from ..graph.read import PRODUCTS, Graph, element_types
from ..optional import require
from ..runners.ort import OrtRunner
from .activations import stream_activations
from .modelopt import require_modelopt, run

# A quarter of 65504, because other images may reach larger values than these.
FLOAT16_LIMIT = 65504 / 4
# LayerNormalization squares its input, and 256 ** 2 is beyond float16.
SQUARED_LIMIT = 255.0
AUTOCAST = {"float16": "fp16", "bfloat16": "bf16"}
# Images that AutoCast itself runs.
SAMPLE = 4


@dataclass(frozen=True)
class KeptNode:
    """A node that was left in float32, and the largest |x| that it reads or writes."""

    node: str
    largest: float

    def __str__(self) -> str:
        return f"{self.node} stays in float32: it reaches {self.largest:.3g} on these images"


def to_half(path: str | Path, precision: str, images: ImageSet, float32_nodes: Sequence[KeptNode] = (),
            io: str = "float32", keep: Collection[str] = ()) -> Any:
    """The float32 file `path` in "float16" or "bfloat16".

    Args:
        images: AutoCast runs the first few of them.
        float32_nodes: nodes that stay float32 because they would overflow, see `near_overflow`.
        io: "float16" also makes the float input and the logits float16.
        keep: modules that stay float32.

    Raises:
        ExportError: AutoCast failed.
    """
    autocast = require_modelopt("modelopt.onnx.autocast")
    exclude = [*SCORE_PATH, *(f"^{re.escape(node.node)}$" for node in float32_nodes),
               *(f"^{re.escape(name)}(/|$)" for name in keep)]
    with OrtRunner(path, device="cpu") as runner:
        sample = {runner.input.name: runner.prepare(next(images.batches(SAMPLE)).images)}
    with scratch_folder("autocast") as folder:
        # mypy could take the names in `sample` for savez's own keywords.
        np.savez(folder / "sample.npz", **sample)  # type: ignore[arg-type]
        result = run(autocast.convert_to_mixed_precision, "convert the graph", str(path), AUTOCAST[precision],
                     nodes_to_exclude=exclude, data_max=np.inf, init_max=FLOAT16_LIMIT, keep_io_types=io == "float32",
                     calibration_data=str(folder / "sample.npz"))
    # AutoCast calls every dimension that it does not know "unk", as if all were equal; ONNX Runtime 1.22 and 1.23
    # believe it and reuse buffers of the wrong shape.
    del result.graph.value_info[:]
    _check(result)
    return result


def near_overflow(source: str | Path | Graph, images: ImageSet, track: Track[Any] = no_track) -> tuple[KeptNode, ...]:
    """Nodes of a float32 graph whose values on `images` come near the largest float16; images are streamed.

    Raises:
        DataError: NaN or infinity on an image; it and the layer are named.
    """
    onnx, graph = require("onnx"), Graph.of(source)
    proto = graph.structure
    floats = [name for node in proto.graph.node for name in node.output
              if graph.types.get(name) == onnx.TensorProto.FLOAT]
    largest = {i.name: float(np.abs(onnx.numpy_helper.to_array(i, graph.folder)).max(initial=0))
               for i in proto.graph.initializer if i.data_type == onnx.TensorProto.FLOAT}
    for _, found in stream_activations(graph, images, floats, track, "looking for overflow"):
        for name, values in found.items():
            largest[name] = max(largest.get(name, 0.0), float(values.max()), -float(values.min()))
    float32_nodes = []
    for node in proto.graph.node:
        reach = max((largest.get(name, 0.0) for name in (*node.input, *node.output)), default=0.0)
        squared = node.op_type == "LayerNormalization" and largest.get(node.input[0], 0.0) > SQUARED_LIMIT
        if reach > FLOAT16_LIMIT or squared:
            float32_nodes.append(KeptNode(node.name, reach))
    return tuple(float32_nodes)


def _check(proto: Any) -> None:
    """Raises ExportError when AutoCast left mixed types, which TensorRT refuses, or rounded a score."""
    onnx = require("onnx")
    types = element_types(proto)
    for node in proto.graph.node:
        scored = on_score_path(node.name) and types.get(node.input[0]) != onnx.TensorProto.FLOAT
        if scored and node.op_type in (*PRODUCTS, "Add", "TopK"):
            raise ExportError(f"{node.name} does not compute scores in float32; report this to us.")
        if node.op_type == "LayerNormalization" and len({types.get(name) for name in node.input}) > 1:
            raise ExportError(f"{node.name} mixes precisions, which TensorRT refuses; report this to us.")
