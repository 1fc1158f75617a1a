"""bfloat16 graphs on runtimes without bfloat16: the same rounding, computed in float32.

Graphs of other precisions pass unchanged; float8 needs no rewriting, only that nothing is fused.
"""
from __future__ import annotations

from typing import Any

from ..graph.read import element_types
from ..optional import require


def in_float32(proto: Any) -> Any:
    """`proto` with every bfloat16 tensor as a float32 one that is rounded to bfloat16.

    Rules:
        1. A bfloat16 initializer becomes float32; its values do not change.
        2. A node's bfloat16 output is rounded by a pair of Casts, to bfloat16 and back.
        3. Casts to bfloat16 become Casts to float32, which rule 2 rounds.

        MatMul -> y: bfloat16   =>   MatMul -> y_exact: float32; Cast(bfloat16); Cast(float32) -> y

    Products accumulate in float32, as on hardware that has bfloat16.
    """
    ir = require("onnx_ir")
    bf16, f32 = ir.DataType.BFLOAT16, ir.DataType.FLOAT
    types, model = element_types(proto), ir.from_proto(proto)
    for value in model.graph.initializers.values():
        if value.dtype == bf16:
            value.const_value = ir.tensor(value.const_value.numpy().astype("float32"), name=value.name)
    for node in list(model.graph):
        if node.op_type == "Cast" and node.attributes.get_int("to") == bf16:
            node.attributes.add(ir.AttrInt64("to", f32))
        for exact in node.outputs:
            if types.get(exact.name) == bf16:
                round_value(model.graph, exact, bf16)
    model.graph.sort()
    return ir.to_proto(model)


def round_value(graph: Any, exact: Any, dtype: Any) -> None:
    """Puts two Casts, to the onnx-ir type `dtype` and back to float32, between the value `exact` and its readers.

    The rounded value takes the name of `exact`. The Casts are appended to `graph`, which needs sorting afterwards.
    """
    ir = require("onnx_ir")
    tape, float32 = ir.tape.Tape(graph), ir.DataType.FLOAT
    rounded = ir.Value(shape=exact.shape, type=ir.TensorType(float32))
    exact.replace_all_uses_with(rounded, replace_graph_outputs=True)
    rounded.name, exact.name, exact.type = exact.name, f"{exact.name}_exact", ir.TensorType(float32)
    tape.op("Cast", [tape.op("Cast", [exact], {"to": dtype})], {"to": float32}, output=rounded)
