"""What is read out of an engine's description; the lines are TensorRT for RTX 1.7.1's."""
import json

import pytest

from dyvit_deploy.engine.layers import (
    EngineLayer,
    complaint,
    engine_precisions,
    from_inspector,
    from_log,
    fused_attention,
    to_rows,
    too_wide,
)

TENSOR = ("{{ Name: x, Dimensions: [-1,197,384], Strides: [75648,384,1], StrideOrder: [2,1,0], Datatype: {}, "
          "Format: (Linear) Row major linear format }}")


def line(name, kind, inputs, nodes):
    tensors = ", ".join(TENSOR.format(t) for t in inputs)
    metadata = "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes)
    constant, output = TENSOR.format("Float"), TENSOR.format("Half")
    return (f"Name: {name}, LayerType: {kind}, Inputs: [ {tensors}], Constants: [ {constant}], Outputs: [ {output}], "
            f"TacticName: t, StreamId: 0, Metadata: {metadata}")


QKV, SCORES, VALUES = "blocks.0.attn.qkv/MatMul", "blocks.0.attn/MatMul", "blocks.0.attn/MatMul_2"
FC1 = "blocks.0.mlp.fc1/MatMul"


def test_the_builders_log_tells_kind_types_and_origin():
    lines = [line("__mye1_myl0_8", "gemm", ["Int8", "Half"], [QKV, "q_DequantizeLinear"]), "", "Engine Metadata:"]
    found = from_log(lines)
    assert found == [EngineLayer("__mye1_myl0_8", "gemm", ("int8", "float16"), (QKV, "q_DequantizeLinear"))]


@pytest.mark.parametrize("spelled", [{"Datatype": "Half"}, {"Format/Datatype": "Half:Row major linear format"},
                                     {"Format/Datatype": "FP16"}])
def test_the_inspector_tells_the_same_in_every_version(spelled):
    layer = {"Name": "a", "LayerType": "gemm", "Inputs": [{"Name": "x", **spelled}],
             "Metadata": f"[ONNX Layer: {QKV}]\x1e[ONNX Layer: n]"}
    text = json.dumps({"Layers": [layer, "only a name"], "Bindings": []})
    assert from_inspector(text) == [EngineLayer("a", "gemm", ("float16",), (QKV, "n"))]


def test_a_products_precision_is_that_of_the_layer_that_multiplies():
    """Its name is also on the kernels that scale and shift its result, whose types say nothing."""
    layers = from_log([line("q", "kgen", ["Float"], [QKV]), line("g", "gemm", ["Int8"], [QKV]),
                       line("s", "kgen", ["Half"], [QKV, "blocks.0.attn.qkv/Add"])])
    assert engine_precisions(layers, [QKV, "absent"]) == {QKV: "int8"}


def test_a_residual_that_was_fused_into_a_product_does_not_widen_it():
    assert engine_precisions(from_log([line("f", "runtime_fusion", ["FP8", "Half"], [FC1])]), [FC1]) == {FC1: "float8"}


def test_a_product_within_a_fused_kernel_is_computed_in_what_the_kernel_reads():
    layers = from_log([line("mha", "kgen", ["Half", "Half", "Half"], [VALUES, "blocks.0.attn/Softmax", SCORES])])
    assert engine_precisions(layers, [SCORES, VALUES]) == {SCORES: "float16", VALUES: "float16"}
    assert fused_attention(layers) == (("blocks.0.attn",), ())


def test_attention_in_several_kernels_is_not_fused():
    layers = from_log([line("a", "gemm", ["Float"], [SCORES]),
                       line("b", "kgen", ["Float"], ["blocks.0.attn/Softmax", SCORES]),
                       line("c", "gemm", ["Float"], [VALUES])])
    assert fused_attention(layers) == ((), ("blocks.0.attn",))


def test_products_wider_than_asked_are_named_by_their_parts():
    wanted = {QKV: "float16", SCORES: "float16", FC1: "int8", "head/Gemm": "float32"}
    found = {QKV: "float32", SCORES: "float32", FC1: "float16", "head/Gemm": "float32"}
    assert too_wide(wanted, found) == [QKV, SCORES, FC1]
    said = complaint(wanted, found)
    assert "3 of 3 matrix products" in said and said.endswith("block 0 attention, block 0 MLP")
    assert "float16 became float32" in said and "int8 became float16" in said


def test_what_came_out_as_asked_or_is_not_named_is_no_complaint():
    assert complaint({QKV: "float16", FC1: "int8"}, {QKV: "float16"}) is None
    assert complaint({QKV: "float32"}, {QKV: "float16"}) is None


def test_every_part_has_one_row():
    rows = to_rows({QKV: "int8", SCORES: "float16", VALUES: "float16", FC1: "int8", "patch_embed.proj/Conv": "int8",
                    "score_predictor.1.in_conv.1/MatMul": "float16", "head/Gemm": "float16"}, ["blocks.0.attn"])
    assert rows == {"block 0": "attn.qkv int8, attn float16 fused, mlp.fc1 int8", "patch embedding": "proj int8",
                    "predictor 1": "in_conv.1 float16", "head": "head float16"}
