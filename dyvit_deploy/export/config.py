"""What the exported graph offers, and how it is written."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..graph.limits import MAX_K
from ..settings.fields import JsonConfig, check_choice, option

INPUTS = ("float32", "uint8")
GATHERS = ("auto", "elements", "nd")
# Exact rewrites of the inference graph, see model.forms; "all" leaves out every one.
FORM_NAMES = ("split-predictor", "one-gather", "read-block", "fold-scale", "fold-batch-norm")
# Per target; measured on CPUs only.
FASTER_GATHER = {"cpu": "nd", "tensorrt": "elements"}


@dataclass(frozen=True)
class ExportConfig(JsonConfig):
    """What the exported graph offers besides `logits`, and how it is written.

    `with_tokens` adds the outputs `kept_0` .. `kept_{S-1}`.
    """

    with_tokens: bool = option(False, "Also output the kept patches of each stage.")
    input: str = option("float32", "uint8 takes raw RGB [batch, height, width, 3] and normalises inside the graph.",
                        choices=INPUTS)
    allow_large_k: bool = option(False, f"Permit TopK beyond TensorRT's limit of {MAX_K}.")
    opset: int = 20
    without: tuple[str, ...] = option((), f"Exact rewrites to leave out, or all: {', '.join(FORM_NAMES)}.")
    gather: str = option("auto", "Operator that copies kept rows; auto: the faster one.", choices=GATHERS)

    def __post_init__(self) -> None:
        super().__post_init__()
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
