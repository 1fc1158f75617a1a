"""What the exported graph offers, and how it is written."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..config import JsonConfig, check_choice

INPUTS = ("float32", "uint8")
GATHERS = ("auto", "elements", "nd")
# Exact rewrites of the inference graph, see model.forms; "all" leaves out every one.
FORM_NAMES = ("split-predictor", "one-gather", "read-block", "fold-scale", "fold-batch-norm")
FASTER_GATHER = {"cpu": "nd", "tensorrt": "elements"}  # per target; measured on CPUs only


@dataclass(frozen=True)
class ExportConfig(JsonConfig):
    """What the exported graph offers besides `logits`, and how it is written.

    `with_tokens` adds `kept_0` .. `kept_{S-1}`; `input` "uint8" takes raw RGB [B, height, width, 3]
    and normalises inside the graph; `allow_large_k` lifts TensorRT's limit on TopK (MAX_K). `without` names FORM_NAMES
    to leave out; `gather` is the operator that copies kept rows, "auto" the one that is faster on the target.
    """

    with_tokens: bool = False
    input: str = "float32"
    allow_large_k: bool = False
    opset: int = 20
    without: tuple[str, ...] = ()
    gather: str = "auto"

    def __post_init__(self) -> None:
        check_choice("input type", self.input, INPUTS)
        check_choice("gather", self.gather, GATHERS)
        object.__setattr__(self, "without", tuple(self.without))
        for name in self.without:
            check_choice("rewrite", name, (*FORM_NAMES, "all"))

    @property
    def left_out(self) -> tuple[str, ...]:
        """The FORM_NAMES that are not applied."""
        return FORM_NAMES if "all" in self.without else self.without

    def for_target(self, target: str) -> ExportConfig:
        """With the gather that is faster there, where it is left open."""
        return dataclasses.replace(self, gather=FASTER_GATHER[target]) if self.gather == "auto" else self
