"""What is quantized, with which scales; ONNX Runtime's quantizer and ModelOpt's."""
import re

import numpy as np
import onnx
import pytest
from helpers import needs_modelopt, photo_folder, tiny_graph

from dyvit_deploy.calibration.collect import calibrate
from dyvit_deploy.calibration.config import CalibrationConfig
from dyvit_deploy.calibration.policy import RULES, part_of, quantizable
from dyvit_deploy.calibration.quantize import FLOAT8_MAX, quantize_cpu, quantize_tensorrt
from dyvit_deploy.calibration.ranges import Ranges
from dyvit_deploy.data.open import open_images
from dyvit_deploy.errors import DataError, ExportError
from dyvit_deploy.graph.names import SCORE_PATH
from dyvit_deploy.graph.read import load_graph, matrix_products, product_precisions, summary
from dyvit_deploy.runners.base import ForeignImages
from dyvit_deploy.runners.ort import OrtRunner


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A graph, its products, its ranges (attention included) and one feed."""
    folder = tmp_path_factory.mktemp("quantize")
    graph, photos = tiny_graph(folder), photo_folder(folder / "photos", 8)
    ranges = calibrate(graph, CalibrationConfig(str(photos), method="mse", attention=True))
    [batch] = open_images(str(photos), ForeignImages(ranges.image_size, ranges.preprocess), limit=2).batches(2)
    return graph, quantizable(load_graph(graph)), ranges, OrtRunner(graph).prepare(batch.images)


def scales(proto):
    """Per quantized activation the node that reads it, and its scale and zero point."""
    values = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    reader = {name: node for node in proto.graph.node for name in node.input}
    found = {}
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in values:
            product = reader[reader[node.output[0]].output[0]]
            found[f"{product.name}:{list(product.input).index(reader[node.output[0]].output[0])}"] = (
                values[node.input[1]], values[node.input[2]])
    return found


def test_the_policy_quantizes_the_stem_the_blocks_and_the_head(made):
    parts = [(p.name, part_of(p)) for p in made[1]]
    assert parts[0] == ("patch_embed.proj", "convolution") and parts[-1] == ("head", "linear")
    blocks = [f"blocks.{i}.{layer}" for i in range(4) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert [name for name, _ in parts[1:-1]] == blocks


def test_the_predictors_stay_and_attention_is_asked_for(made):
    everything = matrix_products(load_graph(made[0]))
    left = {part_of(p) for p in everything} - {part_of(p) for p in made[1]}
    assert left == {"predictor", "attention product"}
    more = quantizable(load_graph(made[0]), attention=True)
    assert {part_of(p) for p in more} == {"convolution", "linear", "attention product"}
    assert not [p for p in more if any(re.fullmatch(pattern, p.node) for pattern in SCORE_PATH)]


def test_every_row_of_the_documented_table_is_a_rule():
    from dyvit_deploy.calibration import policy
    text = policy.__doc__
    assert {rule.part for rule in RULES} == {"predictor", "attention product", "convolution", "linear"}
    assert all(word in text for word in ("predictor", "attention", "convolution", "linear", "softmax", "LayerNorm"))


def test_a_graph_without_products_is_refused():
    empty = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    with pytest.raises(ExportError, match="nothing to quantize"):
        quantizable(empty)


@pytest.mark.parametrize("attention", [False, True])
def test_int8_for_cpus_has_the_scales_of_the_ranges(made, attention):
    graph, _, ranges, _ = made
    products = quantizable(load_graph(graph), attention)
    found = scales(quantize_cpu(graph, ranges, products))
    assert set(found) == {f"{p.node}:{i}" for p in products for i in p.activations}
    for key, (scale, zero) in found.items():
        assert scale == pytest.approx(ranges.tensors[key].threshold / 127, rel=0.01)  # of 254 or 255 steps
        assert zero == 0 and zero.dtype == np.int8


def test_weights_are_int8_per_channel(made):
    proto = quantize_cpu(made[0], made[2], made[1])
    weights = {t.name: t for t in proto.graph.initializer}
    quantized = weights["blocks.0.mlp.fc1.weight.T_quantized"]
    assert quantized.data_type == onnx.TensorProto.INT8
    assert onnx.numpy_helper.to_array(weights["blocks.0.mlp.fc1.weight.T_scale"]).shape == (128,)


@pytest.mark.parametrize("attention", [False, True])
def test_only_what_the_policy_names_is_quantized(made, attention):
    products = quantizable(load_graph(made[0]), attention)
    proto = quantize_cpu(made[0], made[2], products)
    onnx.checker.check_model(proto)
    precisions = product_precisions(proto)
    assert {node for node, precision in precisions.items() if precision == "int8"} == {p.node for p in products}
    before = summary(n.op_type for n in load_graph(made[0]).graph.node)
    after = summary(n.op_type for n in proto.graph.node)
    assert all(after[kind] == before[kind] for kind in ("Softmax", "Gelu", "LayerNormalization", "TopK"))


def test_the_same_ranges_give_the_same_bytes(made, tmp_path):
    made[2].save(tmp_path / "r.json")
    again = quantize_cpu(made[0], Ranges.load(tmp_path / "r.json"), made[1])
    assert again.SerializeToString() == quantize_cpu(made[0], made[2], made[1]).SerializeToString()


def test_a_tensor_without_a_range_is_refused(made):
    import dataclasses
    with pytest.raises(DataError, match=r"nothing for patch_embed\.proj/Conv"):
        quantize_cpu(made[0], dataclasses.replace(made[2], tensors={}), made[1])


@needs_modelopt
@pytest.mark.parametrize("precision", ["int8", "float8"])
@pytest.mark.parametrize("attention", [False, True])
def test_tensorrt_graphs_have_the_scales_of_the_ranges(made, precision, attention):
    graph, _, ranges, feed = made
    products = quantizable(load_graph(graph), attention)
    proto = quantize_tensorrt(graph, precision, ranges, products, feed)
    onnx.checker.check_model(proto)
    found = scales(proto)
    assert len(found) >= 16 and set(found) <= {f"{p.node}:{i}" for p in products for i in p.activations}
    for key, (scale, zero) in found.items():
        known = ranges.tensors[key]
        expected = known.threshold / 127 if precision == "int8" else known.largest / FLOAT8_MAX
        assert scale == pytest.approx(expected, rel=1e-6) and zero == 0
    precisions = product_precisions(proto)
    quantized = {node for node, found in precisions.items() if found == precision}
    assert {f"blocks.{i}.mlp.fc1/MatMul" for i in range(4)} <= quantized <= {p.node for p in products}


@needs_modelopt
def test_modelopt_leaves_the_quantizer_for_cpus_as_it_was(made):
    """It patches ONNX Runtime for the whole process, which would move the ranges of softmax."""
    graph, _, ranges, feed = made
    products = quantizable(load_graph(graph), True)
    before = quantize_cpu(graph, ranges, products).SerializeToString()
    quantize_tensorrt(graph, "int8", ranges, products, feed)
    assert quantize_cpu(graph, ranges, products).SerializeToString() == before


@needs_modelopt
def test_modelopt_gives_the_same_bytes_twice(made):
    graph, products, ranges, feed = made
    first, second = (quantize_tensorrt(graph, "int8", ranges, products, feed).SerializeToString() for _ in range(2))
    assert first == second
