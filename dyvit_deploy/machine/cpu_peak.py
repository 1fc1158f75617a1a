"""The CPU's peak performance: one large matrix product, in the runtime in which artifacts are timed."""
from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..optional import require
from .openvino import HINTS, core, cpu_has_bfloat16

# Side of the square matrices; number of products timed.
SIDE, RUNS = 2048, 10
PEAK_PRECISIONS = {"ONNX Runtime": ("float32", "int8"), "OpenVINO": ("float32", "bfloat16", "int8")}


def matmul_gflops(backend: str, precision: str, threads: int = 0, side: int = SIDE) -> float | None:
    """GFLOP/s (two operations per multiply-accumulate) of a product of two `side` x `side` matrices, one of them
    constant, as in a linear layer. None for a `backend` and `precision` not in PEAK_PRECISIONS.

    The result is the best of RUNS, not the median, because it serves as an upper bound. An int8 product includes the
    rounding of its input and the scaling of its result, which every int8 product needs.
    """
    if precision not in PEAK_PRECISIONS.get(backend, ()):
        return None
    open_product = {"ONNX Runtime": _in_onnxruntime, "OpenVINO": _in_openvino}[backend]
    call = open_product(_product(precision == "int8", side), precision, threads, side)
    for _ in range(3):
        call()
    seconds = []
    for _ in range(RUNS):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return 2 * side ** 3 / min(seconds) / 1e9


def _product(quantized: bool, side: int) -> bytes:
    """An ONNX file with one MatMul of x [side, side] by a constant; if `quantized`, with Q/DQ of both operands."""
    onnx = require("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((side, side), dtype=np.float32)
    left, right = "x", "w"
    nodes: list[Any] = []
    constants: dict[str, Any] = {"w": weight}
    if quantized:
        scale = np.full(side, np.abs(weight).max() / 127, np.float32)
        constants = {"w8": np.round(weight / scale).astype(np.int8), "w_scale": scale,
                     "w_zero": np.zeros(side, np.int8), "x_scale": np.float32(4 / 127), "x_zero": np.int8(0)}
        nodes = [helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x8"]),
                 helper.make_node("DequantizeLinear", ["x8", "x_scale", "x_zero"], ["xd"]),
                 helper.make_node("DequantizeLinear", ["w8", "w_scale", "w_zero"], ["wd"], axis=1)]
        left, right = "xd", "wd"
    nodes.append(helper.make_node("MatMul", [left, right], ["y"]))
    value = functools.partial(helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT, shape=[side, side])
    graph = helper.make_graph(nodes, "peak", [value("x")], [value("y")],
                              [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized


def _feed(side: int) -> Any:
    return np.random.default_rng(1).standard_normal((side, side), dtype=np.float32)


def _in_onnxruntime(model: bytes, precision: str, threads: int, side: int) -> Callable[[], Any]:
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session, feed = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]), _feed(side)
    return lambda: session.run(None, {"x": feed})


def _in_openvino(model: bytes, precision: str, threads: int, side: int) -> Callable[[], Any]:
    # As in an export, operations that are not int8 use bfloat16 if the CPU supports it.
    rest = "bfloat16" if precision == "int8" and cpu_has_bfloat16() else precision
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": HINTS.get(rest, "f32")}
    options |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
    request = core().compile_model(core().read_model(model), "CPU", options).create_infer_request()
    feed = _feed(side)
    return lambda: request.infer({0: feed}, share_inputs=True)
