"""What is quantized to int8 or float8, and what is not.

| part | quantized | why |
|---|---|---|
| convolutions of the stem | yes | one product each, with one scale per output channel |
| linear layers of blocks and head | yes | nine tenths of the operations |
| products inside attention | `--quantize-attention` | small, and their inputs have no constant side to fold |
| predictors | no | 3 % of the operations decide what all later blocks see |
| their score head, TopK | no, always float32 | a rounded score is a tie, which every backend breaks its own way |
| softmax, GELU, LayerNorm, additions | no | no products: nothing to gain, and the residual stream is wide |

Outputs of layers are not quantized either, only what goes into a product: rounding an output would
round the residual stream. For TensorRT, ModelOpt leaves out further layers that tensor cores do not
speed up: those with fewer than 16 inputs or outputs, in float8 also convolutions of few channels.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import ExportError
from ..graph.read import Product, matrix_products


@dataclass(frozen=True)
class Rule:
    """The first rule that applies to a product decides. `optional` rules quantize when asked to."""

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
    """The row of the table that `product` belongs to."""
    return next(rule.part for rule in RULES if rule.applies(product))


def quantizable(proto: Any, attention: bool = False) -> list[Product]:
    """The products of a float graph that the policy quantizes, in the order they run.

    Raises:
        ExportError: there is none.
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
