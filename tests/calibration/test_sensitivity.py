import dataclasses

import numpy as np
import onnx
import pytest
import torch
from helpers import photo_folder, tiny_graph

from dyvit_deploy.calibration.collect import calibrate
from dyvit_deploy.calibration.config import CalibrationConfig
from dyvit_deploy.calibration.rounding import round_product, round_weight
from dyvit_deploy.calibration.sensitivity import measure_sensitivity
from dyvit_deploy.errors import ConfigError
from dyvit_deploy.graph.names import on_score_path
from dyvit_deploy.graph.read import load_graph, matrix_products
from dyvit_deploy.runners.ort import OrtRunner

TORCH = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sensitivity")
    graph, photos = tiny_graph(folder), photo_folder(folder / "photos", 8)
    return graph, str(photos), calibrate(graph, CalibrationConfig(str(photos)))


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_weights_are_rounded_as_torch_rounds_them(precision):
    weight = np.random.default_rng(0).standard_normal((16, 8), dtype=np.float32)
    expected = torch.from_numpy(weight).to(TORCH[precision]).float().numpy()
    assert (round_weight(weight, precision, "MatMul") == expected).all()


@pytest.mark.parametrize("operator, axis", [("MatMul", 0), ("Gemm", 1)])
def test_float8_weights_have_one_scale_per_output_channel(operator, axis):
    weight = np.random.default_rng(0).standard_normal((16, 8), dtype=np.float32) * 1e-3
    scale = np.abs(weight).max(axis=axis, keepdims=True) / np.float32(448)
    expected = torch.from_numpy(weight / scale).to(torch.float8_e4m3fn).float().numpy() * scale
    assert np.allclose(round_weight(weight, "float8", operator), expected, rtol=1e-6)


@pytest.mark.parametrize("precision", TORCH)
def test_a_rounded_product_multiplies_rounded_numbers(made, precision, tmp_path):
    graph, _, ranges = made
    product = next(p for p in matrix_products(load_graph(graph)) if p.name == "blocks.0.mlp.fc1")
    proto = load_graph(graph)
    output = next(n.output[0] for n in proto.graph.node if n.name == product.node)
    weight = next(onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == product.weight)
    onnx.save(round_product(proto, product, precision, ranges), tmp_path / "one.onnx")
    onnx.checker.check_model(tmp_path / "one.onnx")
    runner = OrtRunner(tmp_path / "one.onnx", watch=[product.tensors[0], output])
    found = runner.tensors(np.full((2, 32, 32, 3), 90, np.uint8))
    x = torch.from_numpy(found[product.tensors[0]])
    scale = ranges.tensors[f"{product.node}:0"].largest / 448 if precision == "float8" else 1.0
    low = (x / scale).to(TORCH[precision]).float() * scale
    expected = low.numpy() @ round_weight(weight, precision, "MatMul")
    if precision != "float8":
        expected = torch.from_numpy(expected).to(TORCH[precision]).float().numpy()
    assert np.allclose(found[output], expected, rtol=1e-2 if precision == "bfloat16" else 1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["int8", "float8", "float16", "bfloat16"])
def test_each_layer_costs_something_and_the_costliest_is_first(made, precision):
    report = measure_sensitivity(made[0], precision, CalibrationConfig(made[1]))
    errors = [layer.error for layer in report.layers]
    assert errors == sorted(errors, reverse=True) and errors[0] > 0 and report.images == 8
    products = [p for p in matrix_products(load_graph(made[0])) if not on_score_path(p.node)]
    assert {layer.node for layer in report.layers} <= {p.node for p in products}
    assert len(report.layers) == (18 if precision in ("int8", "float8") else len(products))
    assert "blocks.0.mlp.fc1" in {layer.layer for layer in report.layers}


def test_a_layer_that_loses_its_range_is_found(made, tmp_path):
    """One layer clipped at a hundredth of its range costs more than all others."""
    tensors = dict(made[2].tensors)
    key = "blocks.2.attn.proj/MatMul:0"
    tensors[key] = dataclasses.replace(tensors[key], threshold=tensors[key].largest / 100)
    dataclasses.replace(made[2], tensors=tensors).save(tmp_path / "r.json")
    report = measure_sensitivity(made[0], "int8", CalibrationConfig(made[1], str(tmp_path / "r.json")))
    assert report.layers[0].layer == "blocks.2.attn.proj"
    assert report.layers[0].error > 3 * report.layers[1].error


def test_an_unknown_precision_is_refused(made):
    with pytest.raises(ConfigError, match="Did you mean 'int8'"):
        measure_sensitivity(made[0], "int4", CalibrationConfig(made[1]))


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_chart_is_the_same_file_twice(made, tmp_path, suffix):
    pytest.importorskip("matplotlib", reason="matplotlib is missing: pip install 'dyvit-deploy[calib]'")
    report = measure_sensitivity(made[0], "float16", CalibrationConfig(made[1], images=4))
    for name in "ab":
        report.chart(tmp_path / f"{name}.{suffix}")
    first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
    assert first == second and len(first) > 5000
    with pytest.raises(ConfigError, match=r"\.png or \.svg"):
        report.chart(tmp_path / "chart.jpg")
