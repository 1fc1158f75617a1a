"""One product of a float32 graph with its inputs and output rounded to a lower float precision."""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph.read import Product
from ..optional import require
from .quantize import FLOAT8_MAX, SMALLEST
from .ranges import Ranges, tensor_key


def round_product(proto: Any, product: Product, precision: str, ranges: Ranges | None = None) -> Any:
    """`proto`, changed in place.

    Rules:
        1. A computed input x becomes Cast(Cast(x, low), float32); for float8 x is scaled to its range before.
        2. The weight is rounded likewise, for float8 per output channel.
        3. float16 and bfloat16 also round the output; float8 products accumulate and answer in float32.

        MatMul (x, w)   =>   MatMul (round(x), round(w)) -> round
    """
    onnx = require("onnx")
    graph = proto.graph
    nodes = list(graph.node)
    where = next(i for i, node in enumerate(nodes) if node.name == product.node)
    node = nodes[where]
    before: list[Any] = []
    for index, tensor in zip(product.activations, product.tensors):
        scale = 1.0
        if precision == "float8":
            assert ranges is not None
            scale = max(ranges.tensors[tensor_key(product.node, index)].largest, SMALLEST) / FLOAT8_MAX
        name = f"{product.node}:{index}"
        before += _rounding(tensor, f"{name}:rounded", precision, scale, graph)
        node.input[index] = f"{name}:rounded"
    if product.weight is not None:
        tensor = next(t for t in graph.initializer if t.name == product.weight)
        rounded = round_weight(onnx.numpy_helper.to_array(tensor), precision, product.operator)
        graph.initializer.append(onnx.numpy_helper.from_array(rounded, f"{product.weight}:rounded"))
        node.input[list(node.input).index(product.weight)] = f"{product.weight}:rounded"
    after: list[Any] = []
    if precision != "float8":
        output = node.output[0]
        node.output[0] = f"{output}:exact"
        after = _rounding(f"{output}:exact", output, precision, 1.0, graph)
    copies = [onnx.NodeProto.FromString(n.SerializeToString())
              for n in (*nodes[:where], *before, node, *after, *nodes[where + 1:])]
    del graph.node[:]
    graph.node.extend(copies)
    return proto


def round_weight(weight: NDArray[np.float32], precision: str, operator: str) -> NDArray[np.float32]:
    """`weight` with values of `precision`; float8 has one scale per output channel: the last axis of a
    MatMul's weight, the first of the others'."""
    dtype = require("onnx").helper.tensor_dtype_to_np_dtype(_element_type(precision))
    scale: Any = np.float32(1)
    if precision == "float8":
        channel = weight.ndim - 1 if operator == "MatMul" else 0
        others = tuple(axis for axis in range(weight.ndim) if axis != channel)
        largest = np.abs(weight).max(axis=others, keepdims=True)
        scale = np.maximum(largest, np.float32(SMALLEST)) / np.float32(FLOAT8_MAX)
    rounded: NDArray[np.float32] = (weight / scale).astype(dtype).astype(np.float32) * scale
    return rounded


def _rounding(source: str, target: str, precision: str, scale: float, graph: Any) -> list[Any]:
    """Nodes that compute `target` from `source`."""
    onnx = require("onnx")
    make, low, last = onnx.helper.make_node, f"{target}:low", target
    nodes = []
    if scale != 1.0:
        for suffix, value in (("down", 1 / scale), ("up", scale)):
            graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), f"{target}:{suffix}"))
        nodes.append(make("Mul", [source, f"{target}:down"], [f"{target}:small"], name=f"{target}:small"))
        source, last = f"{target}:small", f"{target}:float"
    nodes += [make("Cast", [source], [low], name=low, to=_element_type(precision)),
              make("Cast", [low], [last], name=last, to=onnx.TensorProto.FLOAT)]
    if scale != 1.0:
        nodes.append(make("Mul", [last, f"{target}:up"], [target], name=target))
    return nodes


def _element_type(precision: str) -> int:
    types = require("onnx").TensorProto
    found: int = {"float16": types.FLOAT16, "bfloat16": types.BFLOAT16, "float8": types.FLOAT8E4M3FN}[precision]
    return found
