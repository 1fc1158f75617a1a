"""The exported graph is one that other toolchains take as it is."""
import numpy as np
import pytest
import torch
from helpers import tiny_checkpoint, tiny_images, tiny_model

from dyvit_deploy.config import ExportConfig
from dyvit_deploy.export.onnx import export_onnx


@pytest.fixture(scope="module", params=["float32", "uint8"])
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("interop")
    export_onnx(tiny_checkpoint(folder), folder / "m.onnx", ExportConfig(with_tokens=True, input=request.param))
    return request.param, folder / "m.onnx"


def test_openvino_computes_the_same(exported):
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'dyvit-deploy[openvino]'")
    dtype, path = exported
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    if dtype == "uint8":
        assert compiled(np.zeros((3, 32, 32, 3), np.uint8))["logits"].shape == (3, 5)
        return
    model, _ = tiny_model(0.5)
    images = tiny_images(3)
    with torch.inference_mode():
        expected = model(images).numpy()
    assert np.allclose(compiled(images.numpy())["logits"], expected, atol=1e-4)


def test_tensorrt_for_rtx_builds_an_engine_without_a_gpu(exported):
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is missing: pip install 'dyvit-deploy[rtx]'")
    dtype, path = exported
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse_from_file(str(path)), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    profile, config = builder.create_optimization_profile(), builder.create_builder_config()
    image = (32, 32, 3) if dtype == "uint8" else (3, 32, 32)
    profile.set_shape("images", (1, *image), (4, *image), (8, *image))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config).nbytes > 10_000
