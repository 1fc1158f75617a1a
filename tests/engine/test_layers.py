"""Reading of an engine's layers; the log lines are from TensorRT for RTX 1.7.1."""
import json

import pytest

from dyvit_deploy.engine.layers import (
    EngineLayer,
    engine_precisions,
    fallback_text,
    from_inspector,
    from_log,
    fused_attention,
    precision_fallbacks,
    to_rows,
)

TENSOR = ("{{ Name: x, Dimensions: [-1,197,384], Strides: [75648,384,1], StrideOrder: [2,1,0], Datatype: {}, "
          "Format: (Linear) Row major linear format }}")


SCALE = "{ Name: s, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) linear }"


def line(name, kind, inputs, nodes, weights=()):
    metadata = "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes)
    tensors, constants = (", ".join(TENSOR.format(t) for t in types) for types in (inputs, weights))
    constants = f"{constants}, {SCALE}" if weights else SCALE
    return (f"Name: {name}, LayerType: {kind}, Inputs: [ {tensors}], Constants: [ {constants}], Outputs: "
            f"[ {TENSOR.format('Half')}], TacticName: t, StreamId: 0, Metadata: {metadata}")


QKV, SCORES, VALUES = "blocks.0.attn.qkv/MatMul", "blocks.0.attn/MatMul", "blocks.0.attn/MatMul_2"
FC1, SOFTMAX = "blocks.0.mlp.fc1/MatMul", "blocks.0.attn/Softmax"
COMPUTED = {QKV: 1, SCORES: 2, VALUES: 2, FC1: 1}


def test_the_builders_log_has_kind_types_and_origin():
    lines = [line("__mye1_myl0_8", "gemm", ["Int8", "Half"], [QKV, "q_DequantizeLinear"], ["Int8"]), "",
             "Engine Metadata:"]
    found = from_log(lines)
    assert found == [EngineLayer("__mye1_myl0_8", "gemm", ("int8", "float16"), (QKV, "q_DequantizeLinear"), ("int8",))]


@pytest.mark.parametrize("spelled", [{"Datatype": "Half"}, {"Format/Datatype": "Half:Row major linear format"},
                                     {"Format/Datatype": "FP16"}])
def test_the_inspectors_list_is_read_alike_in_every_version(spelled):
    layer = {"Name": "a", "LayerType": "gemm", "Inputs": [{"Name": "x", **spelled}],
             "Metadata": f"[ONNX Layer: {QKV}]\x1e[ONNX Layer: n]"}
    text = json.dumps({"Layers": [layer, "only a name"], "Bindings": []})
    assert from_inspector(text) == [EngineLayer("a", "gemm", ("float16",), (QKV, "n"))]


def test_the_inspectors_list_separates_weights_from_scales_and_inputs():
    layers = [{"Name": "a", "LayerType": "gemm", "Metadata": "", "Inputs": [
                   {"Name": "x", "Dimensions": [-1, 384], "Datatype": "Int8"}, {"Name": "s", "Dimensions": [1],
                                                                               "Datatype": "Float"}],
               "Constants": [{"Name": "w", "Dimensions": [384, 384], "Datatype": "Int8"},
                             {"Name": "alpha", "Dimensions": [1], "Datatype": "Float"}]},
              {"Name": "b", "LayerType": "CaskConvolution", "Metadata": "", "Inputs": [],
               "Weights": {"Type": "Half", "Count": 9}}]
    assert [(layer.inputs, layer.constants) for layer in from_inspector(json.dumps({"Layers": layers}))] == [
        (("int8",), ("int8",)), ((), ("float16",))]


def test_a_products_precision_is_that_of_the_layer_that_multiplies():
    """The kernels that scale and shift its result have its name, too, but their types do not count."""
    layers = from_log([line("q", "kgen", ["Float"], [QKV]), line("g", "gemm", ["Int8"], [QKV]),
                       line("s", "kgen", ["Half"], [QKV, "blocks.0.attn.qkv/Add"])])
    assert engine_precisions(layers, [QKV, "absent"]) == {QKV: "int8"}


def test_a_residual_that_was_fused_into_a_product_does_not_widen_it():
    assert engine_precisions(from_log([line("f", "runtime_fusion", ["FP8", "Half"], [FC1])]), [FC1]) == {FC1: "float8"}


def test_a_product_within_a_fused_kernel_is_computed_in_what_the_kernel_reads():
    layers = from_log([line("mha", "kgen", ["Half", "Half", "Half"], [VALUES, "blocks.0.attn/Softmax", SCORES])])
    assert engine_precisions(layers, [SCORES, VALUES]) == {SCORES: "float16", VALUES: "float16"}
    assert fused_attention(layers) == (("blocks.0.attn",), ())


def precisions(*lines):
    return engine_precisions(from_log(lines), COMPUTED, COMPUTED)


@pytest.mark.parametrize("inputs, weights, found", [
    # Residuals, biases and scales that are wider than the operands.
    (["Half", "Float"], ["Half"], "float16"), (["Float", "Half"], ["Half", "Float"], "float16"),
    (["Int8", "Float"], ["Int8", "Half"], "int8"), (["Int8", "Half"], [], "int8"),
    (["Half", "Half", "Float"], [], "float16"), (["Float", "Int8", "Int8"], [], "int8"),
    # Activations that are wider than the weights, listed apart or among the inputs.
    (["Float"], ["Int8"], "float32"), (["Float", "Int8"], [], "float32"), (["Half", "FP8"], [], "float16"),
    # Weights as wide as the product, and a residual that is narrower.
    (["Float", "Half"], ["Float"], "float32"), (["Float", "Float", "Half"], [], "float32"),
])
def test_a_product_multiplies_in_the_type_of_its_operands(inputs, weights, found):
    assert precisions(line("g", "gemm", inputs, [FC1], weights)) == {FC1: found}


@pytest.mark.parametrize("inputs, found", [
    (["Half", "Half", "Half"], ["float16", "float16"]), (["Half"], ["float16", "float16"]),
    # A mask or a bias of the softmax is no operand, nor are those of packed q, k and v.
    (["Half", "Half", "Half", "Float"], ["float16", "float16"]), (["Int8", "Float"], ["int8", "int8"]),
    # Values that are wider than queries and keys.
    (["Int8", "Int8", "Half"], ["int8", "float16"]), (["Float", "Float", "Float"], ["float32", "float32"]),
    # Values that are narrower, and a mask before them.
    (["Half", "Half", "Int8"], ["float16", "int8"]), (["Int8", "Int8", "Float", "Int8"], ["int8", "int8"]),
])
def test_a_fused_attention_multiplies_in_the_type_of_queries_keys_and_values(inputs, found):
    kernel = line("_gemm_mha_v2_myl0_10", "kgen", inputs, [VALUES, SOFTMAX, SCORES])
    assert list(precisions(kernel).values()) == found


def test_a_softmax_or_a_sum_in_float32_does_not_widen_the_products_around_it():
    found = precisions(line("s", "gemm", ["Half", "Half"], [SCORES]), line("v", "gemm", ["Half", "Half"], [VALUES]),
                       line("__myl_MaxSubExpSum_myl0_3", "kgen", ["Float"], [SOFTMAX, SCORES]),
                       line("__myl_CastAdd_myl0_4", "kgen", ["Float", "Float"], [FC1, "blocks.0/Add"]),
                       line("__myl_FcAdd_myl0_5", "kgen", ["Half"], [FC1], ["Half"]))
    assert found == {SCORES: "float16", VALUES: "float16", FC1: "float16"}


def test_a_product_in_a_wide_kernel_is_not_hidden_by_narrow_kernels_beside_it():
    found = precisions(line("__myl_Fc_myl0_5", "kgen", ["Float"], [FC1], ["Float"]),
                       line("__myl_MulCast_myl0_6", "kgen", ["Half"], [FC1]),
                       line("q", "gemm", ["Half"], [QKV], ["Half"]), line("r", "gemm", ["Float"], [QKV], ["Float"]))
    assert found == {FC1: "float32", QKV: "float32"}


def test_a_product_before_a_fused_attention_is_that_of_its_own_layer():
    found = precisions(line("g", "gemm", ["Int8"], [QKV], ["Int8"]),
                       line("_gemv_mha_v1_myl0_101", "kgen", ["Half"], [VALUES, SOFTMAX, SCORES, QKV], ["Half"]))
    assert found == {QKV: "int8", SCORES: "float16", VALUES: "float16"}


def test_a_layer_whose_first_input_has_no_type_has_no_precision():
    layer = {"Name": "c", "LayerType": "CaskConvolution", "Metadata": f"[ONNX Layer: {FC1}]", "Inputs": [
        {"Name": "x", "Format/Datatype": "N/A due to dynamic shapes"}, {"Name": "r", "Format/Datatype": "Half"}]}
    assert engine_precisions(from_inspector(json.dumps({"Layers": [layer]})), COMPUTED, COMPUTED) == {}


def test_attention_in_several_kernels_is_not_fused():
    layers = from_log([line("a", "gemm", ["Float"], [SCORES]),
                       line("b", "kgen", ["Float"], ["blocks.0.attn/Softmax", SCORES]),
                       line("c", "gemm", ["Float"], [VALUES])])
    assert fused_attention(layers) == ((), ("blocks.0.attn",))


def test_products_wider_than_requested_are_named_by_part_and_node():
    wanted = {QKV: "float16", FC1: "int8", "head/Gemm": "float32"}
    found = {QKV: "float32", FC1: "float16", "head/Gemm": "float32"}
    assert precision_fallbacks(wanted, found) == {QKV: "float16", FC1: "int8"}
    assert fallback_text({QKV: "float16", FC1: "int8"}, found) == (
        "block 0 attention (blocks.0.attn.qkv/MatMul) asked float16, became float32; "
        "block 0 MLP (blocks.0.mlp.fc1/MatMul) asked int8, became float16")


def test_five_products_are_named_and_the_others_counted():
    nodes = [f"blocks.{i}.mlp.fc1/MatMul" for i in range(7)]
    text = fallback_text(dict.fromkeys(nodes, "float16"), dict.fromkeys(nodes, "float32"))
    assert text.count("asked float16") == 5 and text.endswith("; and 2 more")


def test_a_product_as_requested_or_not_listed_is_no_fallback():
    assert precision_fallbacks({QKV: "float16", FC1: "int8"}, {QKV: "float16"}) == {}
    assert precision_fallbacks({QKV: "float32"}, {QKV: "float16"}) == {}


def test_every_part_has_one_row():
    rows = to_rows({QKV: "int8", SCORES: "float16", VALUES: "float16", FC1: "int8", "patch_embed.proj/Conv": "int8",
                    "score_predictor.1.in_conv.1/MatMul": "float16", "head/Gemm": "float16"}, ["blocks.0.attn"])
    assert rows == {"block 0": "attn.qkv int8, attn float16 fused, mlp.fc1 int8", "patch embedding": "proj int8",
                    "predictor 1": "in_conv.1 float16", "head": "head float16"}
