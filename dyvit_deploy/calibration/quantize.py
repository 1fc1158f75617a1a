"""Writes Q/DQ graphs from ranges: int8 for CPUs with ONNX Runtime's quantizer, int8 and float8 for TensorRT with
ModelOpt. These libraries insert the nodes; `policy.py` selects the products, and the ranges give all activation scales.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts.locks import own_tempdir, scratch_folder
from ..errors import DataError
from ..graph.files import fits_one_file, weight_bytes
from ..graph.read import CARRIERS, PRODUCTS, Graph, Product, load_graph
from ..optional import require
from .modelopt import require_modelopt, run
from .observers import INT8_LEVELS
from .ranges import Ranges, TensorRange, tensor_key

# The largest number of e4m3fn.
FLOAT8_MAX = 448.0
# A tensor that was always zero needs a threshold and a scale too; this is the smallest number of float16.
SMALLEST = 2.0 ** -24


def quantize_cpu(source: str | Path | Graph, ranges: Ranges, products: Sequence[Product]) -> Any:
    """int8 ModelProto of a float32 graph: weights per channel, activations per tensor, all symmetric.

    ONNX Runtime and OpenVINO run it. Outputs are not quantized: in ONNX Runtime that costs time, in OpenVINO 2026.4 it
    causes a logit error of 30 %.

    Raises:
        DataError: `ranges` lacks an input of a product.
    """
    quantization = require("onnxruntime.quantization")
    quantizer = require("onnxruntime.quantization.qdq_quantizer").QDQQuantizer
    calibrate = require("onnxruntime.quantization.calibrate")
    data = {}
    for product in products:
        for index, tensor in zip(product.activations, product.tensors):
            limit = np.float32(max(_range_of(ranges, product.node, index).threshold, SMALLEST))
            data[tensor] = calibrate.TensorData(lowest=-limit, highest=limit)
    int8 = quantization.QuantType.QInt8
    with own_tempdir("quantizer"):
        made = quantizer(
            Graph.of(source).copy(), per_channel=True, reduce_range=False, weight_qType=int8, activation_qType=int8,
            tensors_range=calibrate.TensorsData(calibrate.CalibrationMethod.MinMax, data),
            nodes_to_quantize=[p.node for p in products], nodes_to_exclude=[], op_types_to_quantize=list(PRODUCTS),
            # TensorRT takes no int32 bias, and without quantized outputs no runtime gains by one.
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
                           "OpTypesToExcludeOutputQuantization": list(PRODUCTS)})
        made.quantize_model()
    made.model.topological_sort()
    return made.model.model


def quantize_tensorrt(source: str | Path | Graph, precision: str, ranges: Ranges, products: Sequence[Product],
                      sample: NDArray[Any]) -> Any:
    """int8 or float8 ModelProto of a float32 or float16 graph, for TensorRT: zero points are 0.

    Args:
        source: the graph; its file must exist too, because ModelOpt reads it.
        precision: "int8" or "float8".
        sample: one input of the graph. ModelOpt runs it to place its nodes; the scales that it finds are replaced.

    Raises:
        MissingDependency: ModelOpt is not installed.
        ExportError: ModelOpt failed.
        DataError: `ranges` lacks an input of a product.
    """
    modelopt, graph = require_modelopt("modelopt.onnx.quantization"), Graph.of(source)
    with scratch_folder("quantize") as folder:
        out = folder / "model.onnx"
        name = graph.structure.graph.input[0].name
        run(modelopt.quantize, "quantize the graph", str(graph.path), {"int8": "int8", "float8": "fp8"}[precision],
            calibration_data={name: sample}, calibration_method="max", calibration_eps=["cpu"],
            use_external_data_format=not fits_one_file(weight_bytes(graph.structure)),
            high_precision_dtype="fp32", nodes_to_quantize=[f"^{re.escape(p.node)}$" for p in products],
            output_path=str(out), log_level="ERROR")
        proto = load_graph(out)
    replace_scales(proto, precision, ranges, graph.types)
    return proto


def replace_scales(proto: Any, precision: str, ranges: Ranges, types: dict[str, int]) -> None:
    """Sets the scale of every quantized activation from `ranges`, in place.

    int8 divides the clipped range into INT8_LEVELS steps; float8 scales the largest value to its own largest.
    `types` are the element types before quantization: a scale has that of its tensor.
    """
    onnx = require("onnx")
    initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
    consumers: dict[str, list[tuple[Any, int]]] = {}
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            consumers.setdefault(name, []).append((node, index))
    for node in proto.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in initializers:
            continue
        found = [_range_of(ranges, product.name, index) for product, index in _products_below(node, consumers)]
        limit = max(r.threshold / INT8_LEVELS if precision == "int8" else r.largest / FLOAT8_MAX for r in found)
        scale = initializers[node.input[1]]
        # ModelOpt takes tensors whose type it does not find for float32.
        dtype = onnx.helper.tensor_dtype_to_np_dtype(types.get(node.input[0], scale.data_type))
        value: NDArray[Any] = np.asarray(max(limit, SMALLEST), dtype)
        scale.CopyFrom(onnx.numpy_helper.from_array(value.reshape(tuple(scale.dims)), scale.name))


def _products_below(node: Any, consumers: dict[str, list[tuple[Any, int]]]) -> list[tuple[Any, int]]:
    """The products that read `node`'s output, and which input it is, through Q/DQ and shape changes."""
    found = []
    for user, index in consumers.get(node.output[0], []):
        if user.op_type in PRODUCTS:
            found.append((user, index))
        elif index == 0 and user.op_type in (*CARRIERS, "DequantizeLinear"):
            found += _products_below(user, consumers)
    return found


def _range_of(ranges: Ranges, node: str, index: int) -> TensorRange:
    try:
        return ranges.tensors[tensor_key(node, index)]
    except KeyError as error:
        raise DataError(f"The ranges have nothing for {node}; calibrate again, with the same options.") from error
