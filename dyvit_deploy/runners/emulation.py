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
    onnx = require("onnx")
    bf16, f32 = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    types = element_types(proto)
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    for tensor in graph.initializer:
        if tensor.data_type == bf16:
            array = onnx.numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    nodes = []
    for node in graph.node:
        if node.op_type == "Cast":
            for attribute in node.attribute:
                attribute.i = f32 if attribute.name == "to" and attribute.i == bf16 else attribute.i
        nodes.append(node)
        for i, name in enumerate(node.output):
            if types.get(name) == bf16:
                node.output[i] = f"{name}_exact"
                nodes += [onnx.helper.make_node("Cast", [f"{name}_exact"], [f"{name}_low"], f"{name}_round", to=bf16),
                          onnx.helper.make_node("Cast", [f"{name}_low"], [name], f"{name}_back", to=f32)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    del graph.value_info[:]
    graph.node.extend(copies)
    return result
