"""float16 and bfloat16 graphs: what is lowered, what stays, what is found near overflow."""
import numpy as np
import onnx
import pytest
from helpers import needs_modelopt, photo_folder, tiny_graph

from dyvit_deploy.calibration.half import near_overflow, to_half
from dyvit_deploy.data.open import open_images
from dyvit_deploy.errors import DataError
from dyvit_deploy.graph.read import element_types, load_graph, product_precisions
from dyvit_deploy.runners.ort import OrtRunner

pytestmark = needs_modelopt
TYPES = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    graph = tiny_graph(folder)
    return graph, open_images(str(photo_folder(folder / "photos", 6)), OrtRunner(graph).image_spec())


@pytest.fixture(scope="module", params=["float16", "bfloat16"])
def half(request, made):
    assert near_overflow(*made) == ()
    return request.param, to_half(made[0], request.param, made[1])


def test_all_products_but_the_scores_are_lowered(half):
    precision, proto = half
    found = product_precisions(proto)
    scores = {f"score_predictor.{stage}.score/MatMul" for stage in range(3)}
    assert {node for node, p in found.items() if p == "float32"} == scores
    assert set(found.values()) == {precision, "float32"}


def test_scores_and_topk_stay_float32_and_indices_int64(half):
    types = element_types(half[1])
    for node in half[1].graph.node:
        if node.op_type == "TopK":
            assert types[node.input[0]] == onnx.TensorProto.FLOAT and types[node.output[1]] == onnx.TensorProto.INT64


def test_layernorm_input_scale_and_bias_go_together(half):
    types = element_types(half[1])
    norms = [node for node in half[1].graph.node if node.op_type == "LayerNormalization"]
    assert len(norms) == 12
    for node in norms:
        assert len({types[name] for name in node.input}) == 1, node.name


def test_input_and_output_stay_float32(half):
    for value in (half[1].graph.input[0], half[1].graph.output[0]):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [v.type.tensor_type.elem_type for v in half[1].graph.output][1:] == [onnx.TensorProto.INT64] * 3


def test_float16_io_is_there_when_asked_for(made, tmp_path):
    proto = to_half(made[0], "float16", made[1], io="float16")
    assert [v.type.tensor_type.elem_type for v in (proto.graph.input[0], proto.graph.output[0])] == [
        onnx.TensorProto.FLOAT16] * 2
    onnx.save(proto, tmp_path / "io.onnx")
    [batch] = made[1].batches(100)
    with OrtRunner(tmp_path / "io.onnx") as low, OrtRunner(made[0]) as full:
        assert low.input.dtype == "float16"
        assert np.allclose(low.predict(batch.images).logits, full.predict(batch.images).logits, atol=0.1)


def test_bfloat16_has_the_opset_it_needs(made):
    assert to_half(made[0], "bfloat16", made[1]).opset_import[0].version >= 22


def scaled(graph, path, name, factor):
    """The graph with one weight multiplied."""
    proto = load_graph(graph)
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(factor), name))
    onnx.save(proto, path)
    return path


def test_a_layer_near_overflow_is_moved_back_up_and_reported(made, tmp_path):
    graph = scaled(made[0], tmp_path / "large.onnx", "blocks.1.mlp.fc1.bias", 1e6)
    kept = near_overflow(graph, made[1])
    proto = to_half(graph, "float16", made[1], kept)
    names = {r.node for r in kept}
    assert "blocks.1.mlp.fc1/Add" in names and "blocks.0.mlp.fc1/Add" not in names
    assert all(r.largest > 255 for r in kept)
    assert "stays in float32: it reaches" in str(kept[0])
    types = element_types(proto)
    output = next(n.output[0] for n in proto.graph.node if n.name == "blocks.1.mlp.fc1/Add")
    assert types[output] == onnx.TensorProto.FLOAT
    onnx.save(proto, tmp_path / "low.onnx")
    [batch] = made[1].batches(100)
    with OrtRunner(tmp_path / "low.onnx") as low:
        assert np.isfinite(low.predict(batch.images).logits).all()


def test_layernorm_goes_up_before_its_square_overflows(made, tmp_path):
    graph = scaled(made[0], tmp_path / "large.onnx", "blocks.0.mlp.fc2.bias", 4000)
    kept = near_overflow(graph, made[1])
    assert kept and all("LayerNormalization" in r.node for r in kept)


def test_nan_on_an_image_is_named(made, tmp_path):
    graph = scaled(made[0], tmp_path / "nan.onnx", "blocks.1.mlp.fc1.bias", np.nan)
    with pytest.raises(DataError, match=r"000\.png makes blocks\.1\.mlp\.fc1/Add give NaN"):
        near_overflow(graph, made[1])


def test_kept_modules_stay_float32(made):
    proto = to_half(made[0], "float16", made[1], keep=["blocks.2.attn.qkv"])
    found = product_precisions(proto)
    assert found["blocks.2.attn.qkv/MatMul"] == "float32" and found["blocks.1.attn.qkv/MatMul"] == "float16"
