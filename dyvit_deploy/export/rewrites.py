"""Passes over the exported graph; each returns (model, modified).

What needs no pass: the predictors score with one linear output, so no log-softmax is ever
exported, and the inference path removes tokens, so there is no mask arithmetic to remove.
"""
from __future__ import annotations

import ast
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..model.state import published_name

SCOPES = "pkg.torch.onnx.name_scopes"


class NameNodesByModule(InPlacePass):
    """Names nodes after the module they come from, so that messages and profiles of runtimes name it.

    Rules:
        1. A node that carries torch's module path is named `path/operator`, numbered when it repeats.
        2. Wrapper and backbone prefixes are left out: the path is the one of published checkpoints.
        3. An initializer loses the same prefixes; one that torch transposed is named after its node.
        4. A node without a path keeps its name.

        node_MatMul_216 (x, val_230)   ->   score_predictor.0.in_conv.1/MatMul (x, score_predictor.0.in_conv.1.weight.T)
    """

    def call(self, model: ir.Model) -> PassResult:
        seen: dict[str, int] = {}
        modified = False
        for node in model.graph:
            path = _module_path(node.metadata_props.get(SCOPES, ""))
            if not path:
                continue
            name = f"{path}/{node.op_type}"
            seen[name] = seen.get(name, 0) + 1
            node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
            modified = True
            weight = node.inputs[1] if node.op_type == "MatMul" else None
            if weight is not None and weight.is_initializer() and weight.name and weight.name.startswith("val_"):
                weight.name = f"{path}.weight.T"
        for value in list(model.graph.initializers.values()):
            short = _short(value.name or "")
            modified |= short != value.name
            value.name = short
        return PassResult(model, modified)


def _short(name: str) -> str:
    """Without the exported wrapper, and as in published checkpoints."""
    return published_name("" if name == "model" else name.removeprefix("model."))


def _module_path(scopes: str) -> str:
    """The longest module path in torch's list of scopes, e.g. `blocks.0.attn.qkv`."""
    try:
        names = ast.literal_eval(scopes)
    except (ValueError, SyntaxError):
        return ""
    # The last scope is the operator itself, the one before it the innermost module.
    path = names[-2] if len(names) > 1 else ""
    return "" if path.startswith("_") else _short(path)


class DropExporterNotes(InPlacePass):
    """Removes what the exporter records for its own debugging.

    Rules:
        1. Metadata of nodes and values goes: it holds source lines and paths of the exporting machine.
        2. Documentation strings of nodes go, for the same reason.

        MatMul {stack_trace: "File /home/..."}   ->   MatMul
    """

    def call(self, model: ir.Model) -> PassResult:
        graph = model.graph
        holders: list[Any] = [graph, *graph.inputs, *graph.outputs, *graph.initializers.values()]
        for node in graph:
            node.doc_string = None
            holders += [node, *node.outputs]
        modified = False
        for holder in holders:
            modified |= bool(holder.metadata_props)
            holder.metadata_props.clear()
        return PassResult(model, modified)


class GatherRows(InPlacePass):
    """Gathers whole rows instead of elements with one index each.

    Rules:
        1. A GatherElements over axis 1 whose index is expanded from one per row becomes a GatherND.
        2. The index keeps its last axis, of length 1, and is not expanded.

        GatherElements(x [B, N, C], Expand(index [B, K, 1]))   ->   GatherND(x, index, batch_dims=1)
    """

    def call(self, model: ir.Model) -> PassResult:
        modified = False
        for node in list(model.graph):
            expand = node.inputs[1].producer() if node.op_type == "GatherElements" and node.inputs[1] else None
            if expand is None or expand.op_type != "Expand" or node.attributes.get_int("axis", 0) != 1:
                continue
            if not _one_per_row(expand.inputs[0]):
                continue
            rows = ir.node("GatherND", [node.inputs[0], expand.inputs[0]], {"batch_dims": 1}, name=node.name)
            rows.metadata_props.update(node.metadata_props)
            output = rows.outputs[0]
            output.name, output.shape, output.type = node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], [rows], node.outputs, rows.outputs)
            modified = True
        return PassResult(model, modified)


def _one_per_row(index: ir.Value | None) -> bool:
    """True for an index [B, K, 1] that differs per image and per row."""
    shape = index.shape if index is not None else None
    return shape is not None and len(shape) == 3 and shape[2] == 1 and shape[0] != 1 and shape[1] != 1


PASSES: tuple[type[InPlacePass], ...] = (NameNodesByModule, DropExporterNotes)
GATHERS: dict[str, tuple[type[InPlacePass], ...]] = {
    "elements": (), "nd": (GatherRows, RemoveUnusedNodesPass)}


def rewrite(model: ir.Model, gather: str = "elements") -> tuple[ir.Model, list[str]]:
    """Runs all passes; also returns the names of those that changed something."""
    changed = []
    for make in (*GATHERS[gather], *PASSES):
        result = make()(model)
        model = result.model
        if result.modified:
            changed.append(make.__name__)
    return model, changed
