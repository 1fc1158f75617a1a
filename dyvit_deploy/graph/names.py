"""What names of graph nodes mean: `blocks.7.attn.qkv/MatMul` is "block 7 attention"; some mark the score path."""
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
# Nodes that compute or rank keep scores: rounded scores tie, and every backend breaks ties its own way.
SCORE_PATH = (r"score_predictor\.\d+\.score/.*", r"selector\.\d+/TopK")


def node_label(node: str) -> str:
    """The part of the model that the graph node `node` belongs to; OTHER where its name does not tell."""
    for pattern, words in LABEL_PATTERNS:
        match = re.match(pattern, node)
        if match:
            return words.format(*match.groups())
    return OTHER


def node_labels(nodes: Iterable[str]) -> list[str]:
    """Every part once, in the order of `nodes`; nodes that do not tell are called by their own name."""
    names = ((node_label(node), node) for node in nodes)
    return list(dict.fromkeys(node if part == OTHER else part for part, node in names))


def on_score_path(node: str) -> bool:
    """True for nodes that compute or rank keep scores, which stay float32 in every precision."""
    return any(re.fullmatch(pattern, node) for pattern in SCORE_PATH)
