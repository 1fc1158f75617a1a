"""What a runtime's optimizer makes of a graph: how many layers are left, and which patterns it fuses."""
from __future__ import annotations

import collections
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..optional import require

ATTENTION = re.compile(r"blocks\.\d+\.attn/MatMul(_\d+)?")  # its two products, by the names of our graphs
ATTENTION_OPERATORS = ("Attention", "MultiHeadAttention")


class Fusions(NamedTuple):
    """`layers` are left; in `attention` blocks both products and the softmax are one kernel; `fused` counts the
    operators that the optimizer put in the place of several."""

    layers: int
    attention: int
    fused: dict[str, int]

    def words(self, blocks: int) -> str:
        """For people; `blocks` is how many the model has."""
        others = ", ".join(f"{count} {name}" for name, count in self.fused.items())
        return (f"{self.layers} layers, attention is one kernel in {self.attention} of {blocks} blocks; fused: "
                f"{others or 'none'}")


def onnxruntime_fusions(path: str | Path) -> Fusions:
    """Of the graph that ONNX Runtime optimizes file `path` to on the CPU of this machine.

    Raises:
        Exception: of ONNX Runtime, see `ort.failures`: it has no kernel for the graph.
    """
    ort, onnx = require("onnxruntime"), require("onnx")
    with tempfile.TemporaryDirectory(prefix="dyvit-optimized-") as folder:
        options = ort.SessionOptions()
        options.log_severity_level, options.optimized_model_filepath = 4, str(Path(folder) / "optimized.onnx")
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node
    fused = collections.Counter(node.op_type for node in nodes if node.domain)
    return Fusions(len(nodes), sum(fused[name] for name in ATTENTION_OPERATORS), dict(fused.most_common()))


def openvino_fusions(layers: Iterable[tuple[str, str]]) -> Fusions:
    """Of the (type, names of the original layers, comma-separated) of a compiled model's layers."""
    parts = [(kind, names.split(",")) for kind, names in layers if kind not in ("Input", "Output", "Const")]
    attention = sum(sum(bool(ATTENTION.fullmatch(name)) for name in names) >= 2 for _, names in parts)
    fused = collections.Counter(kind for kind, names in parts if len(names) > 1)
    return Fusions(len(parts), attention, dict(fused.most_common()))
