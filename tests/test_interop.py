"""The exported graph is one that other toolchains take as it is."""
import numpy as np
import pytest
import torch
from helpers import needs_modelopt, photo_folder, tiny_checkpoint, tiny_images, tiny_model

from dyvit_deploy.calibration.config import CalibrationConfig, PrecisionConfig
from dyvit_deploy.deploy.config import DeployConfig
from dyvit_deploy.deploy.pipeline import export_artifact
from dyvit_deploy.export.config import ExportConfig
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


def build_with_rtx(path, image):
    """The size of the engine that TensorRT for RTX builds of the graph, without a GPU."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is missing: pip install 'dyvit-deploy[rtx]'")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse_from_file(str(path)), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    profile, config = builder.create_optimization_profile(), builder.create_builder_config()
    profile.set_shape("images", (1, *image), (4, *image), (8, *image))
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config).nbytes


def test_tensorrt_for_rtx_builds_an_engine_without_a_gpu(exported):
    dtype, path = exported
    assert build_with_rtx(path, (32, 32, 3) if dtype == "uint8" else (3, 32, 32)) > 10_000


@needs_modelopt
@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("options", [
    {"precision": "float16"}, {"precision": "float16", "io": "float16"}, {"precision": "bfloat16"},
    {"precision": "int8"}, {"precision": "int8", "rest": "float32"},
    {"precision": "float8"}, {"precision": "float8", "rest": "float32"},
], ids=lambda options: "-".join(options.values()))
@pytest.mark.parametrize("attention, input", [(False, "float32"), (True, "uint8")], ids=["", "attention-uint8"])
def test_tensorrt_for_rtx_builds_every_precision(tmp_path, options, attention, input):
    photos = str(photo_folder(tmp_path / "photos", 4))
    config = DeployConfig("onnx", ExportConfig(with_tokens=True, input=input),
                          PrecisionConfig(target="tensorrt", gate=False, **options),
                          CalibrationConfig(photos, attention=attention))
    report = export_artifact(tiny_checkpoint(tmp_path), tmp_path / "m.onnx", config)
    assert report.products[options["precision"]] > 10
    assert build_with_rtx(tmp_path / "m.onnx", (32, 32, 3) if input == "uint8" else (3, 32, 32)) > 10_000


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_tensorrt_for_rtx_builds_the_graphs_for_cpus_too(tmp_path, precision):
    if precision == "float16":
        pytest.importorskip("modelopt", reason="ModelOpt is missing: pip install 'dyvit-deploy[calib]'")
    config = DeployConfig("onnx", ExportConfig(), PrecisionConfig(precision, gate=False),
                          CalibrationConfig(str(photo_folder(tmp_path / "photos", 4))))
    export_artifact(tiny_checkpoint(tmp_path), tmp_path / "m.onnx", config)
    assert build_with_rtx(tmp_path / "m.onnx", (3, 32, 32)) > 10_000
