"""One product of a float32 graph with its inputs and output rounded to a lower float precision."""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph.read import Product
from ..optional import require
from ..runners.emulation import round_value
from .quantize import FLOAT8_MAX, SMALLEST
from .ranges import Ranges, tensor_key


def round_product(proto: Any, product: Product, precision: str, ranges: Ranges | None = None) -> Any:
    """A copy of `proto` with one product rounded.

    Rules:
        1. A computed input x becomes Cast(Cast(x, low), float32); for float8, x is first scaled to the range of float8.
        2. The weight is rounded likewise, for float8 per output channel.
        3. float16 and bfloat16 also round the output; float8 products accumulate and return float32.

        MatMul (x, w)   =>   MatMul (round(x), round(w)) -> round
    """
    ir = require("onnx_ir")
    model, low = ir.from_proto(proto), _data_type(precision)
    node, tape = model.graph.node(product.node), ir.tape.Tape(model.graph)
    for index in product.activations:
        scale = 1.0
        if precision == "float8":
            assert ranges is not None
            scale = max(ranges.tensors[tensor_key(product.node, index)].largest, SMALLEST) / FLOAT8_MAX
        down, up = (tape.initializer(ir.tensor(np.float32(value)), f"{product.node}:{index}:{name}")
                    for name, value in (("down", 1 / scale), ("up", scale)))
        cast = tape.op("Cast", [tape.op("Mul", [node.inputs[index], down])], {"to": low})
        node.replace_input_with(index, tape.op("Mul", [tape.op("Cast", [cast], {"to": ir.DataType.FLOAT}), up]))
    if product.weight is not None:
        weight = model.graph.initializers[product.weight]
        rounded = ir.tensor(round_weight(weight.const_value.numpy(), precision, product.operator))
        node.replace_input_with(node.inputs.index(weight), tape.initializer(rounded, f"{weight.name}:rounded"))
    if precision != "float8":
        round_value(model.graph, node.outputs[0], low)
    model.graph.sort()
    return ir.to_proto(model)


def round_weight(weight: NDArray[np.float32], precision: str, operator: str) -> NDArray[np.float32]:
    """`weight` with values of `precision`. float8 has one scale per output channel: the last axis of a MatMul's
    weight, the first axis of other weights."""
    dtype = _data_type(precision).numpy()
    scale: Any = np.float32(1)
    if precision == "float8":
        channel = weight.ndim - 1 if operator == "MatMul" else 0
        others = tuple(axis for axis in range(weight.ndim) if axis != channel)
        largest = np.abs(weight).max(axis=others, keepdims=True)
        scale = np.maximum(largest, np.float32(SMALLEST)) / np.float32(FLOAT8_MAX)
    rounded: NDArray[np.float32] = (weight / scale).astype(dtype).astype(np.float32) * scale
    return rounded


def _data_type(precision: str) -> Any:
    types = require("onnx_ir").DataType
    return {"float16": types.FLOAT16, "bfloat16": types.BFLOAT16, "float8": types.FLOAT8E4M3FN}[precision]
