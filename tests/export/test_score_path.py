"""Keep scores stay float32 by the names of their nodes, so a graph in which these are missing is refused."""
import onnx
import onnx_ir
import pytest
from helpers import tiny_config, tiny_model

from dyvit_deploy.artifacts.facts import ArtifactFacts
from dyvit_deploy.config import PruneConfig
from dyvit_deploy.errors import ExportError
from dyvit_deploy.export.onnx import export_model
from dyvit_deploy.export.score_path import check_score_path
from dyvit_deploy.graph.names import on_score_path
from dyvit_deploy.model.dynamicvit import DynamicViT
from dyvit_deploy.model.forms import inference_form


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The form that was traced, and its graph."""
    model, facts = tiny_model()
    path = tmp_path_factory.mktemp("scores") / "m.onnx"
    export_model(model, facts, path)
    return inference_form(model)[0], onnx.load(path)


def graph_of(proto, change):
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for node in copy.graph.node:
        node.name = change(node.name)
    return onnx_ir.from_proto(copy).graph


def test_the_names_that_torch_records_are_accepted(exported):
    model, proto = exported
    check_score_path(graph_of(proto, lambda name: name), model)


@pytest.mark.parametrize("old, new, words", [
    ("selector.1/TopK", "node_topk", "3 stages drop patches, and it ranks scores in selector.0/TopK, node_topk"),
    ("score_predictor.2.score/MatMul", "node_linear_7", "selector.2/TopK ranks what node_linear_7 computes"),
    ("score_predictor.0.out_conv.2/MatMul", "linear_3", "no product has the name of layer out_conv.2 of predictor 0"),
])
def test_a_node_that_lost_its_name_is_named(exported, old, new, words):
    model, proto = exported
    assert any(node.name == old for node in proto.graph.node)
    with pytest.raises(ExportError, match=words):
        check_score_path(graph_of(proto, lambda name: new if name == old else name), model)


def test_a_stage_that_ranks_nothing_is_noticed(exported):
    model, proto = exported
    with pytest.raises(ExportError, match="2 stages drop patches"):
        check_score_path(graph_of(proto, lambda name: name), inference_form(DynamicViT(
            model.config, PruneConfig((1, 2), keep_counts=(8, 4))).eval())[0])


@pytest.mark.parametrize("prune", [
    PruneConfig((1, 2, 3), keep_counts=(16, 8, 8)), PruneConfig.from_ratio(0.5, (1, 2), "attention", fuse=True),
    PruneConfig.from_ratio(0.5, (1, 2), "random"), PruneConfig.from_ratio(0.5, (1, 2), "static"), None])
def test_schedules_and_selectors_of_every_kind_are_exported(tmp_path, prune):
    model = DynamicViT(tiny_config(), prune).eval()
    export_model(model, ArtifactFacts(model.config, prune), tmp_path / "m.onnx")
    names = [node.name for node in onnx.load(tmp_path / "m.onnx").graph.node if node.op_type == "TopK"]
    counts = (16, *model.keep_counts)
    assert len(names) == sum(less < more for more, less in zip(counts, counts[1:]))
    assert all(map(on_score_path, names))
