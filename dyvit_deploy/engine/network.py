"""ONNX to a strongly typed TensorRT network, with errors that name the part of the model."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import BackendError, ConfigError, ExportError
from ..graph.limits import MAX_K
from ..graph.names import OTHER, node_label
from ..graph.read import Graph, Tensor
from ..optional import require
from .config import BatchProfile
from .library import BuilderLibrary

DATA_TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "FP8": "float8",
              "INT32": "int32", "INT64": "int64", "UINT8": "uint8", "BOOL": "bool"}


def check_graph(graph: Graph) -> None:
    """Raises ExportError for what no version of TensorRT supports, before TensorRT itself would."""
    onnx = require("onnx")
    nodes, constants = graph.structure.graph.node, {t.name: t for t in graph.structure.graph.initializer}
    for node in nodes:
        if node.op_type == "TopK" and node.input[1] in constants:
            k = int(onnx.numpy_helper.to_array(constants[node.input[1]]).reshape(-1)[0])
            if k > MAX_K:
                raise ExportError(f"{where(node.name)} of {graph.path.name} keeps {k} tokens, and TensorRT's TopK "
                                  f"takes at most {MAX_K}; export it again with a lower keep ratio or a smaller image.")


def parse(library: BuilderLibrary, path: Path) -> tuple[Any, Any]:
    """The builder and the network of the ONNX file `path`.

    It is always strongly typed: the engine computes in the graph's own types, and TensorRT lowers nothing by itself.

    Raises:
        ExportError: TensorRT does not support an operator or a type; the part of the model is named.
    """
    trt = library.trt
    builder = trt.Builder(library.logger)
    # The flag's number differs between 10 and 11.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.logger)
    # It looks for data files beside the path that it is given.
    if not parser.parse_from_file(str(path.resolve())):
        raise _complaint(library, path, [parser.get_error(i) for i in range(parser.num_errors)])
    return builder, network


def _complaint(library: BuilderLibrary, path: Path, errors: list[Any]) -> ExportError:
    if not errors:
        said = last(library.logger.errors)
        return ExportError(f"{library.spec.name} cannot read {path.name} ({said}); export it again.")
    error = next((e for e in errors if e.node_name()), errors[0])
    said, operator = str(error.desc()), error.node_operator()
    if not operator:
        return ExportError(f"{library.spec.name} {library.version} does not take the inputs or types of {path.name} "
                           f"({short(said)}); export it with image and float tensors.")
    place = f"{where(error.node_name())} of {path.name}"
    if "same input types" in said or "must have type" in said.lower():
        types = next((part for part in said.splitlines() if "type" in part.lower()), said)
        return ExportError(f"The types in {place} do not fit together ({short(types)}); TensorRT takes the graph's "
                           "types as they are: lower a float32 graph with dyvit export --fp16, or insert casts.")
    return ExportError(f"{library.spec.name} {library.version} does not take the operator {operator} of {place} "
                       f"({short(said)}); replace it, or leave that model to ONNX Runtime.")


def where(node: str) -> str:
    """A graph node as the part of the model that it belongs to, and its name."""
    part = node_label(node)
    return f"node {node!r}" if part == OTHER else f"{part} ({node})"


def short(text: str) -> str:
    """TensorRT's own message without the places in its source code."""
    line = next((line for line in text.splitlines() if "Error Code" in line), text.splitlines()[0] if text else "")
    line = line.split(" In ")[0].split("Error Code")[-1].strip(" .(")
    return line.split(": ", 1)[-1][:200].rstrip(".)") or "no reason given"


def last(messages: list[str]) -> str:
    """The last error that says something; those about a missing driver come after every other on a machine without."""
    telling = [m for m in messages if "catchCudaError" not in m and "CUDA driver" not in m] or messages
    return short(telling[-1]) if telling else "no reason given"


def tensors(network: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of the network."""
    def read(tensor: Any) -> Tensor:
        kind = str(tensor.dtype).rsplit(".", 1)[-1]
        shape = tuple(None if side < 0 else int(side) for side in tensor.shape)
        return Tensor(tensor.name, DATA_TYPES.get(kind, kind.lower()), shape)

    return ([read(network.get_input(i)) for i in range(network.num_inputs)],
            [read(network.get_output(i)) for i in range(network.num_outputs)])


def add_profiles(builder: Any, config: Any, inputs: list[Tensor], profiles: tuple[BatchProfile, ...]) -> None:
    """Adds one optimization profile per entry; a graph with a fixed batch takes none."""
    for profile in profiles if any(None in tensor.shape for tensor in inputs) else ():
        shapes = builder.create_optimization_profile()
        for tensor in inputs:
            if None in tensor.shape:
                batches = profile.min, profile.opt, profile.max
                shapes.set_shape(tensor.name, *((batch, *tensor.shape[1:]) for batch in batches))
        config.add_optimization_profile(shapes)


def real_profiles(inputs: list[Tensor], profiles: tuple[BatchProfile, ...], chosen: bool) -> tuple[BatchProfile, ...]:
    """The profiles that the engine will have: those asked for, or the one of a graph with a fixed batch.

    Raises:
        ConfigError: batch sizes were `chosen`, and the graph's batch is fixed at another; or more than the batch
            is free.
    """
    for tensor in inputs:
        if None in tensor.shape[1:]:
            raise ConfigError(f"Input {tensor.name!r} has free dimensions besides the batch {_sides(tensor)}; "
                              "export the graph with fixed ones.")
    if any(None in tensor.shape for tensor in inputs):
        return profiles
    batch = inputs[0].shape[0] if inputs and inputs[0].shape else 1
    fixed = BatchProfile(batch or 1, batch or 1, batch or 1)
    if chosen and any((p.min, p.opt, p.max) != (fixed.min, fixed.opt, fixed.max) for p in profiles):
        raise ConfigError(f"The graph's batch is fixed at {batch}; leave out --batch and --profile, or export it with "
                          "a free batch.")
    return (fixed,)


def _sides(tensor: Tensor) -> str:
    return str(["any" if side is None else side for side in tensor.shape])


def build_failure(library: BuilderLibrary, path: Path, workspace_mib: float | None) -> Exception:
    """TensorRT's refusal to build, as one sentence."""
    said = " ".join(library.logger.errors)
    low = said.lower()
    if "within workspace limit" in low:
        given = f"--workspace {workspace_mib:g}" if workspace_mib else "the workspace limit"
        return ConfigError(f"No implementation fits into {given} MiB; raise it, or leave it out.")
    if "could not find any implementation" in low:
        place = _blamed(said) or "a part of the graph: "
        why = last(library.logger.errors)
        return BackendError(f"{library.spec.name} finds no implementation for {place}{why}; raise "
                            "--workspace or leave it out, free GPU memory, or choose a smaller largest batch.")
    if "out of memory" in low or "outofmemory" in low:
        return BackendError("The GPU's memory does not suffice to build this engine; choose a smaller largest batch "
                            "(--batch 1:8:8), bound the scratch memory (--workspace 1024), or free the GPU.")
    if "hw-specific datatypes" in low or "cannot compile for target" in low:
        return ConfigError(f"A GPU that was asked for lacks a data type of this graph ({last(library.logger.errors)}); "
                           "change --compute-capability or the precision.")
    if "CUDA driver version is insufficient" in said or "no CUDA-capable device" in said:
        return BackendError(f"{library.spec.name} needs a GPU and its driver to build this, and none works here "
                            f"({last(library.logger.errors)}); build on the machine with the GPU.")
    return ExportError(f"{library.spec.name} {library.version} cannot build {path.name}: {_blamed(said)}"
                       f"{last(library.logger.errors)}; report this to us with the model's name.")


def _blamed(said: str) -> str:
    """The part of the model in a message about a node, with a colon; TensorRT quotes nodes by name."""
    names = re.findall(r"(?:blocks|score_predictor|selector|patch_embed|head|norm)[\w.]*/\w+", said)
    return f"{where(names[-1])}: " if names else ""

