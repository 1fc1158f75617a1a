import collections

import numpy as np
import onnx
import pytest
from helpers import tiny_checkpoint, tiny_graph, tiny_images

from dyvit_deploy.config import KeepRequest, LoadConfig
from dyvit_deploy.errors import ArtifactError
from dyvit_deploy.export.config import ExportConfig
from dyvit_deploy.export.onnx import export_onnx
from dyvit_deploy.graph.names import on_score_path
from dyvit_deploy.graph.read import (
    Graph,
    computed_operands,
    element_types,
    keep_outputs,
    load_graph,
    matrix_products,
    product_precisions,
    weights_fingerprint,
)
from dyvit_deploy.runners.ort import OrtRunner


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return tiny_graph(tmp_path_factory.mktemp("graph"))


def test_products_are_named_after_their_modules(graph):
    products = matrix_products(load_graph(graph))
    count = collections.Counter(p.operator for p in products)
    assert count == {"Conv": 1, "Gemm": 1, "MatMul": 4 * 4 + 4 * 2 + 3 * 5}
    assert len({p.name for p in products}) == len(products)
    attention = [p for p in products if p.weight is None]
    assert len(attention) == 8 and all(p.activations == (0, 1) for p in attention)
    assert attention[0].name == attention[0].node == "blocks.0.attn/MatMul"
    assert all(p.activations == (0,) for p in products if p.weight)


def test_score_heads_have_a_name(graph):
    assert [p.name for p in matrix_products(load_graph(graph)) if on_score_path(p.node)] == [
        f"score_predictor.{s}.score" for s in range(3)]


def test_a_product_with_one_quantized_input_is_not_quantized():
    make = onnx.helper.make_node
    nodes = [make("QuantizeLinear", ["x", "s", "z"], ["q"]), make("DequantizeLinear", ["q", "s", "z"], ["d"]),
             make("MatMul", ["d", "w"], ["y"], "half"), make("MatMul", ["d", "d"], ["v"], "both")]
    values = [onnx.numpy_helper.from_array(a, n) for n, a in (
        ("s", np.float32(0.1)), ("z", np.int8(0)), ("w", np.eye(2, dtype=np.float32)))]
    infos = [onnx.helper.make_tensor_value_info(n, 1, [2, 2]) for n in "xyv"]
    proto = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", infos[:1], infos[1:], values))
    assert product_precisions(proto) == {"half": "float32", "both": "int8"}


def test_products_without_a_name_or_with_a_shared_one_are_all_told_apart():
    """ONNX needs no names of nodes."""
    make = onnx.helper.make_node
    nodes = [make("MatMul", ["x", "w"], ["a"]), make("MatMul", ["a", "w"], ["b"]), make("Cast", ["b"], ["c"], to=10),
             make("MatMul", ["c", "h"], ["d"]), make("MatMul", ["c", "h"], ["e"], "twice"),
             make("MatMul", ["c", "h"], ["y"], "twice")]
    values = [onnx.numpy_helper.from_array(np.eye(2, dtype=kind), name) for name, kind in (("w", "f4"), ("h", "f2"))]
    infos = [onnx.helper.make_tensor_value_info(*spec, [2, 2]) for spec in (("x", 1), ("y", 10))]
    proto = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", infos[:1], infos[1:], values))
    assert product_precisions(proto) == {"a": "float32", "b": "float32", "d": "float16", "e": "float16", "y": "float16"}
    assert [p.node for p in matrix_products(proto)] == list(computed_operands(proto)) == ["a", "b", "d", "e", "y"]
    assert len({p.name for p in matrix_products(proto)}) == 5


def test_the_fingerprint_is_of_weights_and_counts_alone(graph, tmp_path):
    mine = weights_fingerprint(load_graph(graph))
    checkpoint = tiny_checkpoint(tmp_path)
    export_onnx(checkpoint, tmp_path / "raw.onnx", ExportConfig(input="uint8"))
    assert weights_fingerprint(load_graph(tmp_path / "raw.onnx")) == mine
    export_onnx(checkpoint, tmp_path / "counts.onnx", load=LoadConfig(keep=KeepRequest(counts=(8, 4, 3))))
    assert weights_fingerprint(load_graph(tmp_path / "counts.onnx")) != mine
    proto = load_graph(graph)
    weight = next(t for t in proto.graph.initializer if t.name == "head.bias")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + np.float32(1e-6), weight.name))
    assert weights_fingerprint(proto) != mine


def test_outputs_can_be_dropped_with_what_only_they_need(graph, tmp_path):
    whole = load_graph(graph)
    less = keep_outputs(whole, ["logits"])
    assert [v.name for v in less.graph.output] == ["logits"]
    assert len(less.graph.node) < len(whole.graph.node)
    onnx.save(less, tmp_path / "less.onnx")
    images = tiny_images().numpy()
    assert (OrtRunner(tmp_path / "less.onnx").infer(images).logits == OrtRunner(graph).infer(images).logits).all()


def test_what_is_no_graph_is_refused(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="not a whole ONNX file"):
        load_graph(tmp_path / "x.onnx")


@pytest.mark.parametrize("quantized", [False, True])
def test_weights_are_told_from_computed_operands_also_when_they_are_quantized_on_their_way(graph, quantized):
    proto = load_graph(graph)
    products = {product.node: product for product in matrix_products(proto)}
    if quantized:
        scale = onnx.numpy_helper.from_array(np.float32(0.1), "scale")
        proto.graph.initializer.append(scale)
        for product in products.values():
            node = next(n for n in proto.graph.node if n.name == product.node)
            for i, name in enumerate(node.input[:2]):
                lowered, raised = f"{node.name}.{i}.q", f"{node.name}.{i}.dq"
                node.input[i] = raised
                proto.graph.node.extend([onnx.helper.make_node("QuantizeLinear", [name, "scale"], [lowered]),
                                         onnx.helper.make_node("DequantizeLinear", [lowered, "scale"], [raised])])
    found = computed_operands(proto)
    assert found == {node: len(product.activations) for node, product in products.items()}
    assert set(found.values()) == {1, 2}


def test_types_do_not_depend_on_the_values_of_weights_and_a_copy_is_independent(graph):
    work = Graph(graph)
    inferred = onnx.shape_inference.infer_shapes(load_graph(graph)).graph
    expected = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input, *inferred.output)}
    assert expected | {i.name: i.data_type for i in inferred.initializer} == work.types == element_types(work.proto)
    before, copy = work.proto.SerializeToString(), work.copy()
    del copy.graph.node[:]
    assert work.proto.SerializeToString() == before and Graph.of(work) is work


def test_a_graph_in_memory_runs_without_a_file(graph, tmp_path):
    images = tiny_images(1).numpy()
    in_memory = OrtRunner(Graph(tmp_path / "none.onnx", load_graph(graph)))
    assert (in_memory.infer(images).logits == OrtRunner(graph).infer(images).logits).all()
    assert in_memory.name == "none.onnx" and in_memory.layer_times(images, 1)
