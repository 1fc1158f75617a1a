import onnx_ir as ir
import pytest

from dyvit_deploy.export.rewrites import SCOPES, DropExporterNotes, GatherRows, NameNodesByModule, rewrite


def graph(scopes: list[str]) -> ir.Model:
    """One MatMul with a transposed weight and one Add per scope list, as the exporter leaves them."""
    x = ir.Value(name="images", shape=ir.Shape(["batch", 4]), type=ir.TensorType(ir.DataType.FLOAT))
    weight = ir.Value(name="val_7", const_value=ir.tensor([[1.0] * 4] * 4, name="val_7"))
    bias = ir.Value(name="model.backbone.blocks.0.attn.qkv.bias", const_value=ir.tensor([0.0] * 4))
    product = ir.node("MatMul", [x, weight], name="node_MatMul_1")
    total = ir.node("Add", [product.outputs[0], bias], name="node_linear")
    nodes = [product, total]
    for node in nodes:
        node.metadata_props[SCOPES] = repr(scopes)
        node.metadata_props["pkg.torch.onnx.stack_trace"] = 'File "/home/someone/model.py"'
        node.outputs[0].metadata_props["note"] = "x"
    return ir.Model(ir.Graph([x], [total.outputs[0]], nodes=nodes, initializers=[weight, bias],
                             opset_imports={"": 20}), ir_version=10)


def test_nodes_and_weights_get_the_names_of_published_checkpoints():
    result = NameNodesByModule()(graph(["", "model", "model.backbone.blocks.0.attn.qkv", "linear"]))
    assert result.modified
    assert [node.name for node in result.model.graph] == ["blocks.0.attn.qkv/MatMul", "blocks.0.attn.qkv/Add"]
    assert set(result.model.graph.initializers) == {"blocks.0.attn.qkv.weight.T", "blocks.0.attn.qkv.bias"}


@pytest.mark.parametrize("scopes", [[], [""], ["", "linear"], ["", "_hook", "linear"]])
def test_nodes_without_a_module_keep_their_names(scopes):
    result = NameNodesByModule()(graph(scopes))
    assert [node.name for node in result.model.graph] == ["node_MatMul_1", "node_linear"]


def test_notes_of_the_exporter_go_and_a_second_run_changes_nothing():
    model, changed = rewrite(graph(["", "model.backbone.norm", "linear"]))
    assert changed == ["NameNodesByModule", "DropExporterNotes"]
    assert not any(node.metadata_props or node.outputs[0].metadata_props for node in model.graph)
    assert not DropExporterNotes()(model).modified
    assert rewrite(model)[1] == []


def gather_graph(axis: int, index_shape: tuple = ("batch", 2, 1)) -> ir.Model:
    """GatherElements over an index that is expanded from one per row, as torch.gather exports."""
    x = ir.Value(name="images", shape=ir.Shape(["batch", 4, 8]), type=ir.TensorType(ir.DataType.FLOAT))
    index = ir.Value(name="kept", shape=ir.Shape(list(index_shape)), type=ir.TensorType(ir.DataType.INT64))
    shape = ir.Value(name="shape", const_value=ir.tensor([1, 1, 8], name="shape"))
    expand = ir.node("Expand", [index, shape])
    gather = ir.node("GatherElements", [x, expand.outputs[0]], {"axis": axis}, name="node_gather")
    gather.outputs[0].name, gather.outputs[0].shape = "rows", ir.Shape(["batch", 2, 8])
    gather.metadata_props[SCOPES] = repr(["", "model.selector.0", "gather"])
    return ir.Model(ir.Graph([x, index], [gather.outputs[0]], nodes=[expand, gather], initializers=[shape],
                             opset_imports={"": 20}), ir_version=10)


def test_rows_are_gathered_whole_and_keep_their_names():
    model, changed = rewrite(gather_graph(axis=1), "nd")
    assert changed[0] == "GatherRows"
    [node] = model.graph                                                   # the Expand is gone
    assert node.name == "selector.0/GatherND" and node.inputs[1].name == "kept"
    assert node.attributes.get_int("batch_dims") == 1
    assert model.graph.outputs[0].name == "rows" and model.graph.outputs[0].producer() is node
    assert not GatherRows()(model).modified


@pytest.mark.parametrize("axis, gather", [(2, "nd"), (1, "elements")])
def test_other_gathers_stay(axis, gather):
    model, changed = rewrite(gather_graph(axis), gather)
    assert "GatherRows" not in changed and [n.op_type for n in model.graph] == ["Expand", "GatherElements"]


@pytest.mark.parametrize("index", [("batch", 1, 8), (1, 2, 1), ("batch", 2, 8), (2, 1)])
def test_an_index_that_is_not_one_per_row_stays(index):
    assert not GatherRows()(gather_graph(1, index)).modified
