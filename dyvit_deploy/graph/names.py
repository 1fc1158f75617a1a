"""Interprets the names of graph nodes: `blocks.7.attn.qkv/MatMul` is "block 7 attention"; some mark the score path."""
from __future__ import annotations

import re
from collections.abc import Iterable

LABEL_PATTERNS = (
    (r"blocks\.(\d+)\.attn\b", "block {} attention"),
    (r"blocks\.(\d+)\.mlp\b", "block {} MLP"),
    (r"blocks\.(\d+)\b", "block {}"),
    (r"score_predictor\.(\d+)\b", "predictor {}"),
    (r"selector\.(\d+)\b", "token selection {}"),
    (r"(?:patch_embed|cls_token|pos_embed)\b", "patch embedding"),
    (r"(?:fc_)?norm\b", "final norm"),
    (r"(?:aux_)?head\b", "head"),
)
OTHER = "between the blocks"
# Nodes that compute or rank keep scores. Rounded scores would tie, and every backend breaks ties differently.
SCORE_PATH = (r"score_predictor\.\d+\.score/.*", r"selector\.\d+/TopK")


def node_label(node: str) -> str:
    """The part of the model to which the graph node `node` belongs; OTHER if its name matches none."""
    for pattern, label in LABEL_PATTERNS:
        match = re.match(pattern, node)
        if match:
            return label.format(*match.groups())
    return OTHER


def node_labels(nodes: Iterable[str]) -> list[str]:
    """The distinct labels of `nodes`, in order; a node without a label is listed by its own name."""
    labelled = ((node_label(node), node) for node in nodes)
    return list(dict.fromkeys(node if label == OTHER else label for label, node in labelled))


def on_score_path(node: str) -> bool:
    """True for nodes that compute or rank keep scores, which stay float32 in every precision."""
    return any(re.fullmatch(pattern, node) for pattern in SCORE_PATH)
