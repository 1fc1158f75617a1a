"""Reads ONNX graphs: which matrix products they hold, in what precision, and whose weights they are."""
from __future__ import annotations

import collections
import functools
import hashlib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..artifacts.facts import METADATA_KEY, ArtifactFacts
from ..errors import ArtifactError
from ..optional import require
from .files import SHAPE_ELEMENTS, check_data, has_data, load_data, parse_graph

PRODUCTS = ("Conv", "Gemm", "MatMul")
# Operators that hand on what they read, so that the precision of their input is that of their output.
CARRIERS = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity")
# What a weight passes on its way from its initializer to a product.
WEIGHT_PATH = (*CARRIERS, "Cast", "QuantizeLinear", "DequantizeLinear")
FLOATS = ("bfloat16", "float16", "float32")


class Tensor(NamedTuple):
    """An input or output: its name, dtype as in numpy, and shape with None for free dimensions."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Product(NamedTuple):
    """One convolution or matrix product.

    name: the module it belongs to, e.g. `blocks.3.attn.qkv`; a product without a weight shares its
        module with others and has the name of its node.
    node: see `product_nodes`.
    operator: one of PRODUCTS.
    activations: numbers of the inputs that are computed, not constant: (0,), or (0, 1) in attention.
    tensors: the names of those inputs.
    weight: the constant input's name, or None.
    """

    name: str
    node: str
    operator: str
    activations: tuple[int, ...]
    tensors: tuple[str, ...]
    weight: str | None


def load_graph(path: str | Path, weights: bool = True) -> Any:
    """The ModelProto in file `path`.

    Args:
        weights: also load the large tensors that are stored in data files.

    Raises:
        ArtifactError: no ONNX file, or one with weights missing, see `check_data`.
    """
    if Path(path).suffix.lower() == ".plan":
        raise ArtifactError(f"{path} is an engine plan; name the ONNX file that it was built from.")
    proto = parse_graph(path)
    if check_data(path, proto):
        load_data(path, proto, None if weights else SHAPE_ELEMENTS)
    return proto


class Graph:
    """A graph that is being worked on: read from its file at most once, and handed on as this object.

    `proto` and `structure` are shared by everything that reads the graph; what changes it takes a `copy`. What needs no
    weights reads `structure`, so that a graph of gigabytes is not loaded.

    Args:
        path: its file.
        proto: the ModelProto where it is in memory already; the file need not exist then.
    """

    def __init__(self, path: str | Path, proto: Any = None) -> None:
        self.path, self.in_memory = Path(path), proto is not None
        if proto is not None:
            self.proto = proto

    @classmethod
    def of(cls, source: str | Path | Graph) -> Graph:
        """`source`, or the graph in that file."""
        return source if isinstance(source, Graph) else cls(source)

    @functools.cached_property
    def structure(self) -> Any:
        """The ModelProto, whose large weights may be in data files in `folder`; see `load_graph` for what it raises."""
        return self.proto if self.in_memory else load_graph(self.path, weights=False)

    @functools.cached_property
    def proto(self) -> Any:
        """The ModelProto with all its weights."""
        return load_graph(self.path) if has_data(self.structure) else self.structure

    @property
    def folder(self) -> str:
        """The folder of its data files."""
        return os.path.dirname(os.path.realpath(self.path))

    @functools.cached_property
    def types(self) -> dict[str, int]:
        """See `element_types`."""
        return element_types(self.structure)

    def copy(self) -> Any:
        """A ModelProto of its own."""
        result = require("onnx").ModelProto()
        result.CopyFrom(self.proto)
        return result


def graph_tensors(values: Iterable[Any]) -> list[Tensor]:
    """The inputs or outputs of an ONNX graph, from their ValueInfoProtos."""
    helper = require("onnx").helper
    found = []
    for value in values:
        kind = value.type.tensor_type
        shape = tuple(None if d.dim_param or not d.dim_value else d.dim_value for d in kind.shape.dim)
        found.append(Tensor(value.name, str(helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape))
    return found


def graph_facts(proto: Any, where: str) -> ArtifactFacts | None:
    """The facts that the graph records, None if dyvit did not write it."""
    properties = {p.key: p.value for p in proto.metadata_props}
    return ArtifactFacts.from_json(properties[METADATA_KEY], where) if METADATA_KEY in properties else None


def set_facts(proto: Any, facts: ArtifactFacts) -> None:
    """Writes `facts` into the graph's metadata, in place of whatever was there."""
    require("onnx").helper.set_model_props(proto, {METADATA_KEY: facts.to_json()})


def product_nodes(proto: Any) -> list[tuple[str, Any]]:
    """All convolutions and matrix products, in the order they run, each with a name of its own: that of its node or,
    as ONNX needs no names of nodes, that of its output."""
    nodes = [node for node in proto.graph.node if node.op_type in PRODUCTS]
    shared = collections.Counter(node.name for node in nodes)
    return [(node.name if node.name and shared[node.name] == 1 else node.output[0], node) for node in nodes]


def matrix_products(proto: Any) -> list[Product]:
    """All convolutions and matrix products of a float graph, in the order they run."""
    constants = {initializer.name for initializer in proto.graph.initializer}
    products = []
    for label, node in product_nodes(proto):
        computed = tuple(i for i, name in enumerate(node.input[:2]) if name not in constants)
        weight = next((name for name in node.input[:2] if name in constants), None)
        name = label.split("/")[0] if weight else label
        products.append(Product(name, label, node.op_type, computed,
                                tuple(node.input[i] for i in computed), weight))
    return products


def element_types(proto: Any) -> dict[str, int]:
    """ONNX element type of every tensor that can be known."""
    inferred = require("onnx").shape_inference.infer_shapes(_without_weights(proto)).graph
    types = {value.name: value.type.tensor_type.elem_type
             for value in (*inferred.value_info, *inferred.input, *inferred.output)}
    return types | {initializer.name: initializer.data_type for initializer in proto.graph.initializer}


def _without_weights(proto: Any) -> Any:
    """`proto` with the names, types and shapes of its weights, and without their values.

    Types do not depend on values, and shape inference copies all that it is given twice.
    """
    light = require("onnx").ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import,
                                       functions=proto.functions)
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(light.graph, field).extend(getattr(proto.graph, field))
    for tensor in proto.graph.initializer:
        if math.prod(tensor.dims) <= SHAPE_ELEMENTS:
            light.graph.initializer.append(tensor)
        else:
            light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return light


def weights_as_inputs(proto: Any) -> Any:
    """`proto` without the values of its large weights, which are inputs: what the checker, like all of protobuf, can
    handle of a graph of any size."""
    light = _without_weights(proto)
    make = require("onnx").helper.make_tensor_value_info
    weights = [tensor for tensor in light.graph.initializer if math.prod(tensor.dims) > SHAPE_ELEMENTS]
    light.graph.input.extend(make(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in weights)
    for tensor in weights:
        light.graph.initializer.remove(tensor)
    light.graph.name = proto.graph.name
    return light


def product_precisions(proto: Any) -> dict[str, str]:
    """For each of `product_nodes`, the precision that its inputs are rounded to: "float32", "float16", "bfloat16",
    "int8" or "float8". Quantized means that ALL its inputs come from a DequantizeLinear."""
    types, producer = element_types(proto), {name: node for node in proto.graph.node for name in node.output}
    names = _precision_names()

    def precision(tensor: str) -> str:
        node = producer.get(tensor)
        while node is not None and node.op_type in CARRIERS:
            tensor = node.input[0]
            node = producer.get(tensor)
        if node is not None and node.op_type == "DequantizeLinear":
            tensor = node.input[0]
        return names.get(types.get(tensor, 0), "unknown")

    result = {}
    for label, node in product_nodes(proto):
        found = {precision(name) for name in node.input[:2]}
        # One quantized input alone is multiplied in the other one's precision.
        result[label] = found.pop() if len(found) == 1 else next(iter(sorted(found & set(FLOATS))), "mixed")
    return result


def computed_operands(proto: Any) -> dict[str, int]:
    """For each of `product_nodes`, how many of its two operands are computed, 1 or 2; the others are weights, also
    where these are quantized or cast on their way."""
    constants = {initializer.name for initializer in proto.graph.initializer}
    constants |= {node.output[0] for node in proto.graph.node if node.op_type == "Constant"}
    producer = {name: node for node in proto.graph.node for name in node.output}

    def computed(tensor: str) -> bool:
        while (node := producer.get(tensor)) is not None and node.op_type in WEIGHT_PATH:
            tensor = node.input[0]
        return tensor not in constants

    return {label: max(1, sum(computed(name) for name in node.input[:2])) for label, node in product_nodes(proto)}


def _precision_names() -> dict[int, str]:
    types = require("onnx").TensorProto
    return {types.FLOAT: "float32", types.FLOAT16: "float16", types.BFLOAT16: "bfloat16", types.INT8: "int8",
            types.UINT8: "int8", types.FLOAT8E4M3FN: "float8"}


def summary(precisions: Iterable[str]) -> dict[str, int]:
    """How many products per precision, the most frequent first."""
    return dict(collections.Counter(precisions).most_common())


def weights_fingerprint(proto: Any, folder: str = "") -> str:
    """sha256 over the float32 weights, kept counts and selector: the same for every interface of one model.

    Ranges are of a model, not of a file: the graph with and without kept-token outputs, and with
    either input type, has the same fingerprint. Unnamed constants and the normalisation are left out.

    Args:
        folder: that of the graph's data files.
    """
    onnx = require("onnx")
    digest = hashlib.sha256()
    for tensor in sorted(proto.graph.initializer, key=lambda t: t.name):
        if "." in tensor.name and tensor.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor, folder)
            digest.update(f"{tensor.name} {array.shape}".encode())
            digest.update(array.tobytes())
    counts = [node.input[1] for node in proto.graph.node if node.op_type == "TopK"]
    values = {t.name: onnx.numpy_helper.to_array(t).tolist() for t in proto.graph.initializer if t.name in counts}
    digest.update(repr([values[name] for name in counts if name in values]).encode())
    prune = getattr(graph_facts(proto, "the graph"), "prune", None)
    # The other selectors have no weights that would show which one it is.
    if prune and prune.selector != "prediction":
        digest.update(f"{prune.selector} {prune.stages} {prune.fuse}".encode())
    return digest.hexdigest()


def keep_outputs(proto: Any, names: Iterable[str]) -> Any:
    """`proto` with these outputs only, and without the nodes that nothing needs any more."""
    ir = require("onnx_ir")
    passes = require("onnx_ir.passes.common")
    wanted = set(names)
    model = ir.from_proto(proto)
    model.graph.outputs[:] = [value for value in model.graph.outputs if value.name in wanted]
    return ir.to_proto(passes.RemoveUnusedNodesPass()(model).model)
