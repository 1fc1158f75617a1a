import numpy as np
import pytest
from helpers import needs_openvino, tiny_graph, tiny_images

from dyvit_deploy.errors import ArtifactError, ConfigError, ExportError
from dyvit_deploy.export.openvino import write_openvino
from dyvit_deploy.graph.read import graph_facts, load_graph, matrix_products
from dyvit_deploy.runners.open import open_runner

pytestmark = needs_openvino


@pytest.fixture
def model(tmp_path):
    graph = tiny_graph(tmp_path)
    write_openvino(graph, tmp_path / "m.xml", graph_facts(load_graph(graph), "m"))
    return graph, tmp_path / "m.xml"


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_it_computes_what_the_graph_computes(model, batch):
    images = tiny_images(batch).numpy()
    with open_runner(model[0]) as onnx_runner, open_runner(model[1]) as runner:
        expected, got = onnx_runner.infer(images), runner.infer(images)
        assert runner.label == "OpenVINO cpu" and runner.facts == onnx_runner.facts
    assert np.allclose(got.logits, expected.logits, atol=1e-4)
    assert all((a == b).all() for a, b in zip(got.kept, expected.kept)) and len(got.kept) == 3


def test_the_second_export_of_a_process_is_the_same_file(model, tmp_path):
    """OpenVINO numbers the operations of a process; two exports must be the same bytes all the same."""
    graph, first = model
    again = tmp_path / "again.xml"
    write_openvino(graph, again, graph_facts(load_graph(graph), "m"))
    assert again.read_bytes() == first.read_bytes()
    assert again.with_suffix(".bin").read_bytes() == first.with_suffix(".bin").read_bytes()


def test_raw_pixels_work(tmp_path):
    graph = tiny_graph(tmp_path, input="uint8")
    write_openvino(graph, tmp_path / "m.xml", graph_facts(load_graph(graph), "m"))
    with open_runner(tmp_path / "m.xml") as runner:
        assert runner.predict(np.zeros((2, 32, 32, 3), np.uint8)).logits.shape == (2, 5)


def test_float32_is_computed_in_float32_even_where_the_cpu_has_bfloat16(model):
    with open_runner(model[1]) as runner:
        found = runner.compiled_precisions()
        named = runner.product_precisions()
    products = [p.node.replace("Gemm", "MatMul") for p in matrix_products(load_graph(model[0]))]
    assert named == dict.fromkeys(products, "float32")
    assert set(found) == {"float32"} and sum(found.values()) == len(
        [n for n in load_graph(model[0]).graph.node if n.op_type in ("Conv", "MatMul", "Gemm")])


def test_a_missing_or_foreign_bin_is_named(model):
    weights = model[1].with_suffix(".bin")
    content = weights.read_bytes()
    weights.write_bytes(content[:-4] + b"\0\0\0\1")
    with pytest.raises(ArtifactError, match=r"not the file that m\.xml was written with"):
        open_runner(model[1])
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"m\.bin is missing; an OpenVINO model is two files"):
        open_runner(model[1])


def test_damaged_files_and_other_devices_are_refused(model, tmp_path):
    with pytest.raises(ConfigError, match="--device cpu"):
        open_runner(model[1], device="cuda")
    model[1].write_text("<xml>")
    with pytest.raises(ArtifactError, match="not an OpenVINO model that can be read"):
        open_runner(model[1])
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match="cannot convert"):
        write_openvino(tmp_path / "x.onnx", tmp_path / "y.xml", None)
    assert not (tmp_path / "y.xml").exists() and not (tmp_path / "y.bin").exists()
