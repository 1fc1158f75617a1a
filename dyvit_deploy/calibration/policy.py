"""Which parts of a graph are quantized to int8 or float8, before any layer is kept for its accuracy.

| part | quantized | why |
|---|---|---|
| convolutions of the stem | yes | one product each, with one scale per output channel |
| linear layers of blocks and head | yes | nine tenths of the operations |
| products inside attention | with `--quantize-attention` | small, and neither input is constant |
| predictors | no | 3 % of the operations, and every later block depends on their choice |
| their score head, TopK | no, always float32 | rounded scores tie, and backends break ties differently |
| softmax, GELU, LayerNorm, additions | no | not matrix products, so nothing is gained |

Only the inputs of products are quantized, never their outputs: that would round the residual stream. For TensorRT,
ModelOpt also leaves out layers that tensor cores do not speed up: those with fewer than 16 inputs or outputs, and in
float8 convolutions with few channels.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import ExportError
from ..graph.read import Product, matrix_products


@dataclass(frozen=True)
class Rule:
    """The first rule that applies to a product decides. An `optional` rule quantizes only on request."""

    part: str
    applies: Callable[[Product], bool]
    quantize: bool
    optional: bool = False


RULES = (
    Rule("predictor", lambda p: p.name.startswith("score_predictor."), False),
    Rule("attention product", lambda p: p.weight is None, False, optional=True),
    Rule("convolution", lambda p: p.operator == "Conv", True),
    Rule("linear", lambda p: True, True),
)


def part_of(product: Product) -> str:
    """The name of the rule that decides about `product`."""
    return next(rule.part for rule in RULES if rule.applies(product))


def quantizable(proto: Any, attention: bool = False) -> list[Product]:
    """The products of a float graph that the policy quantizes, in the order they run.

    Raises:
        ExportError: the policy quantizes none of them.
    """
    chosen = []
    for product in matrix_products(proto):
        rule = next(rule for rule in RULES if rule.applies(product))
        if rule.quantize or (rule.optional and attention):
            chosen.append(product)
    if not chosen:
        raise ExportError("The graph holds no convolution and no linear layer with constant weights, so there is "
                          "nothing to quantize; export it from a checkpoint with dyvit.")
    return chosen
