import pytest

from dyvit_deploy.graph.names import OTHER, node_label, node_labels


@pytest.mark.parametrize("node, part", [
    ("blocks.7.attn.qkv/MatMul", "block 7 attention"), ("blocks.7.attn/MatMul_2", "block 7 attention"),
    ("blocks.11.mlp.fc1/MatMul", "block 11 MLP"), ("blocks.0.norm1/LayerNormalization", "block 0"),
    ("score_predictor.2.out_conv.0/MatMul", "predictor 2"), ("selector.1/TopK", "token selection 1"),
    ("patch_embed.layers.1/Conv", "patch embedding"), ("head/Gemm", "head"), ("norm/LayerNormalization", "final norm"),
    ("node_Shape_0", OTHER), ("headline", OTHER),
])
def test_a_node_is_called_by_the_part_of_the_model_it_belongs_to(node, part):
    assert node_label(node) == part


def test_parts_are_listed_once_and_unknown_nodes_by_their_own_name():
    nodes = ["blocks.1.attn.qkv/MatMul", "blocks.1.attn/MatMul", "MatMul_7", "head/Gemm"]
    assert node_labels(nodes) == ["block 1 attention", "MatMul_7", "head"]
