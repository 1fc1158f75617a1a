"""float16 and bfloat16 graphs with ModelOpt's AutoCast, chosen on real images.

What stays float32: the keep scores and their TopK, the kept patches (int64), the input and the logits
unless they are asked for in float16, and every node that comes near float16's largest number on the images.
"""
from __future__ import annotations

import re
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import ImageSet, Track, no_track
from ..errors import ExportError
from ..graph import SCORE_PATH, element_types, load_graph
from ..modelopt import quiet, require_modelopt
from ..optional import require
from ..runners.activations import stream_activations
from ..runners.ort import OrtRunner

# A quarter of 65504: images that were not looked at may go further than those that were.
FLOAT16_LIMIT = 65504 / 4
# LayerNormalization squares its input, and 256 ** 2 is beyond float16.
SQUARED_LIMIT = 255.0
AUTOCAST = {"float16": "fp16", "bfloat16": "bf16"}
SAMPLE = 4                                  # images that AutoCast itself looks at


@dataclass(frozen=True)
class Raised:
    """A node that was left in float32, and the largest |x| that it reads or writes."""

    node: str
    largest: float

    def __str__(self) -> str:
        return f"{self.node} stays in float32: it reaches {self.largest:.3g} on these images"


def to_half(path: str | Path, precision: str, images: ImageSet, io: str = "float32", keep: Collection[str] = (),
            track: Track[Any] = no_track) -> tuple[Any, tuple[Raised, ...]]:
    """The float32 file `path` in "float16" or "bfloat16", and the nodes that had to stay.

    Args:
        images: on which values are watched; streamed.
        io: "float16" also makes the float input and the logits float16.
        keep: modules that stay float32.

    Raises:
        DataError: NaN or infinity on an image; it and the layer are named.
        ExportError: AutoCast failed.
    """
    proto = load_graph(path)
    raised = near_overflow(path, proto, images, track) if precision == "float16" else ()
    autocast = require_modelopt("modelopt.onnx.autocast")
    exclude = [*SCORE_PATH, *(f"^{re.escape(node.node)}$" for node in raised),
               *(f"^{re.escape(name)}(/|$)" for name in keep)]
    feed = OrtRunner(path).prepare(next(images.batches(SAMPLE)).images)
    with tempfile.TemporaryDirectory(prefix="dyvit-autocast-") as folder, quiet():
        sample: dict[str, Any] = {proto.graph.input[0].name: feed}
        np.savez(Path(folder) / "sample.npz", **sample)
        try:
            result = autocast.convert_to_mixed_precision(
                str(path), AUTOCAST[precision], nodes_to_exclude=exclude, data_max=np.inf, init_max=FLOAT16_LIMIT,
                keep_io_types=io == "float32", calibration_data=str(Path(folder) / "sample.npz"))
        except (RuntimeError, ValueError, KeyError, AssertionError) as error:
            raise ExportError(f"AutoCast could not convert the graph ({str(error).strip().splitlines()[0]}); try "
                              "another version of nvidia-modelopt.") from error
    _check(result)
    return result, raised


def near_overflow(path: str | Path, proto: Any, images: ImageSet, track: Track[Any] = no_track) -> tuple[Raised, ...]:
    """Nodes of the float32 graph `proto` (the file `path`) that float16 could not hold."""
    onnx = require("onnx")
    types = element_types(proto)
    floats = [name for node in proto.graph.node for name in node.output if types.get(name) == onnx.TensorProto.FLOAT]
    largest = {i.name: float(np.abs(onnx.numpy_helper.to_array(i)).max(initial=0)) for i in proto.graph.initializer
               if i.data_type == onnx.TensorProto.FLOAT}
    for _, found in stream_activations(path, images, floats, track, "looking for overflow"):
        for name, values in found.items():
            largest[name] = max(largest.get(name, 0.0), float(values.max()), -float(values.min()))
    raised = []
    for node in proto.graph.node:
        reach = max((largest.get(name, 0.0) for name in (*node.input, *node.output)), default=0.0)
        squared = node.op_type == "LayerNormalization" and largest.get(node.input[0], 0.0) > SQUARED_LIMIT
        if reach > FLOAT16_LIMIT or squared:
            raised.append(Raised(node.name, reach))
    return tuple(raised)


def _check(proto: Any) -> None:
    """Raises ExportError when AutoCast left what TensorRT refuses, or rounded a score."""
    onnx = require("onnx")
    types = element_types(proto)
    for node in proto.graph.node:
        if node.op_type == "TopK" and types.get(node.input[0]) != onnx.TensorProto.FLOAT:
            raise ExportError(f"The scores of {node.name} are not float32 after conversion; report this to us.")
        if node.op_type == "LayerNormalization" and len({types.get(name) for name in node.input}) > 1:
            raise ExportError(f"{node.name} mixes precisions, which TensorRT refuses; report this to us.")
