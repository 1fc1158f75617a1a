import pytest

from dyvit_deploy.calibration.config import PrecisionConfig
from dyvit_deploy.calibration.targets import FLAGS, SUPPORT, ResolvedTarget, resolve
from dyvit_deploy.config import PRECISIONS
from dyvit_deploy.errors import ConfigError
from dyvit_deploy.machine.hardware import LEAST_CAPABILITY


@pytest.mark.parametrize("format, options, native, expected", [
    ("onnx", {}, False, ("cpu", "float32", "float32")),
    ("onnx", {"precision": "int8"}, False, ("cpu", "int8", "float32")),
    ("onnx", {"precision": "float16"}, False, ("cpu", "float16", "float32")),
    ("onnx", {"precision": "bfloat16"}, False, ("tensorrt", "bfloat16", "float16")),
    ("onnx", {"precision": "float8"}, False, ("tensorrt", "float8", "float16")),
    ("onnx", {"precision": "int8", "target": "tensorrt"}, False, ("tensorrt", "int8", "float16")),
    ("onnx", {"precision": "int8", "target": "tensorrt", "rest": "float32"}, False, ("tensorrt", "int8", "float32")),
    ("trt", {}, False, ("tensorrt", "float32", "float16")),
    ("rtx", {"precision": "float8"}, False, ("tensorrt", "float8", "float16")),
    ("openvino", {"precision": "int8"}, True, ("cpu", "int8", "bfloat16")),
    ("openvino", {"precision": "int8"}, False, ("cpu", "int8", "float32")),
    ("openvino", {"precision": "bfloat16"}, True, ("cpu", "bfloat16", "bfloat16")),
])
def test_a_request_leads_to_a_runtime_that_can(format, options, native, expected):
    assert resolve(format, PrecisionConfig(**options), native) == ResolvedTarget(format, *expected)


@pytest.mark.parametrize("format, options, words", [
    ("openvino", {"precision": "float16"}, "OpenVINO on a CPU has no float16; use float32 .*--bf16, --int8"),
    ("openvino", {"precision": "float8"}, "OpenVINO on a CPU has no float8"),
    ("openvino", {"precision": "bfloat16"}, "This CPU does not compute in bfloat16; use --int8"),
    ("openvino", {"precision": "int8", "rest": "bfloat16"}, "cannot be bfloat16 .* here; choose one of: float32"),
    ("openvino", {"target": "tensorrt"}, "leave out --target"),
    ("onnx", {"precision": "float8", "target": "cpu"}, "no float8; .*--int8, or pass --target tensorrt"),
    ("onnx", {"precision": "bfloat16", "target": "cpu"}, "ONNX Runtime on a CPU has no bfloat16"),
    ("onnx", {"io": "float16"}, "add --fp16"),
    ("onnx", {"io": "float16", "precision": "int8"}, "add --fp16"),
    ("onnx", {"io": "float16", "precision": "bfloat16"}, "add --fp16"),
    ("onnx", {"io": "float16", "precision": "int8", "target": "tensorrt", "rest": "float32"}, "add --fp16"),
    ("onnx", {"precision": "float16", "rest": "float32"}, "--rest applies only to --int8 and --fp8"),
    ("trt", {"target": "cpu"}, "leave out --target"),
    ("rtx", {"io": "float16"}, "add --fp16"),
    ("tflite", {}, "Unknown format"),
])
def test_what_a_target_cannot_run_is_refused_with_what_it_can(format, options, words):
    with pytest.raises(ConfigError, match=words):
        resolve(format, PrecisionConfig(**options), False)


@pytest.mark.parametrize("format, options, capabilities, words", [
    ("onnx", {"precision": "float8"}, ["8.6"], r"capability 8\.9, not 8\.6; choose .*--bf16, --int8"),
    ("rtx", {"precision": "float8"}, ["8.9", "8.6"], r"capability 8\.9, not 8\.6"),
    ("onnx", {"precision": "bfloat16"}, ["7.5"], r"capability 8\.0, not 7\.5; .*--fp16, --int8"),
    ("onnx", {"precision": "float16", "target": "tensorrt"}, ["6.1"], "does not run there"),
    ("onnx", {"precision": "int8"}, ["8.6"], "add --target tensorrt"),
])
def test_a_gpu_without_the_precision_is_refused(format, options, capabilities, words):
    with pytest.raises(ConfigError, match=words):
        resolve(format, PrecisionConfig(**options), False, capabilities)


@pytest.mark.parametrize("options, words", [
    ({"precision": "int9"}, "Did you mean 'int8'"), ({"io": "uint8"}, "Unknown io"),
    ({"target": "gpu"}, "Unknown target"),
    ({"max_drop": -1}, "0 to 100"),
])
def test_a_request_is_checked_when_it_is_made(options, words):
    with pytest.raises(ConfigError, match=words):
        PrecisionConfig(**options)


def test_short_names_of_precisions_are_understood():
    config = PrecisionConfig("fp16", rest="bf16", io="fp16")
    assert (config.precision, config.rest, config.io) == ("float16", "bfloat16", "float16")


def test_the_tables_know_every_precision():
    assert set(FLAGS) == set(LEAST_CAPABILITY) == set(PRECISIONS)
    assert {p for support in SUPPORT.values() for p in support.precisions} == set(PRECISIONS)
