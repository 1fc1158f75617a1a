"""The graph as a runtime optimized it: how many layers are left, and which patterns were fused."""
from __future__ import annotations

import collections
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..artifacts.files import native_path
from ..artifacts.locks import scratch_folder
from ..optional import require

# The two products of attention, as graphs that dyvit exports name them.
ATTENTION = re.compile(r"blocks\.\d+\.attn/MatMul(_\d+)?")
ATTENTION_OPERATORS = ("Attention", "MultiHeadAttention")


class Fusions(NamedTuple):
    """The optimized graph has `layers` layers; in `attention` of its blocks, both products and the softmax are one
    kernel; `fused` counts the fused operators by name."""

    layers: int
    attention: int
    fused: dict[str, int]

    def summary(self, blocks: int) -> str:
        """One line of text; `blocks` is the number of blocks of the model."""
        fused = ", ".join(f"{count} {name}" for name, count in self.fused.items())
        return (f"{self.layers} layers, attention is one kernel in {self.attention} of {blocks} blocks; fused: "
                f"{fused or 'none'}")


def onnxruntime_fusions(path: str | Path) -> Fusions:
    """The fusions in the graph `path` as ONNX Runtime optimizes it for the CPU of this machine.

    Raises:
        Exception: one of `ort.failures`: ONNX Runtime has no kernel for an operator of the graph.
    """
    ort, onnx = require("onnxruntime"), require("onnx")
    with scratch_folder("optimized") as folder:
        options = ort.SessionOptions()
        options.log_severity_level, options.optimized_model_filepath = 4, str(folder / "optimized.onnx")
        # Otherwise a graph above 2 GiB could not be written.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
        ort.InferenceSession(native_path(os.path.realpath(path)), options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node
    fused = collections.Counter(node.op_type for node in nodes if node.domain)
    return Fusions(len(nodes), sum(fused[name] for name in ATTENTION_OPERATORS), dict(fused.most_common()))


def openvino_fusions(layers: Iterable[tuple[str, str]]) -> Fusions:
    """The fusions in a compiled model; each of its `layers` is (type, comma-separated names of the original layers)."""
    named = [(kind, names.split(",")) for kind, names in layers if kind not in ("Input", "Output", "Const")]
    attention = sum(sum(bool(ATTENTION.fullmatch(name)) for name in names) >= 2 for _, names in named)
    fused = collections.Counter(kind for kind, names in named if len(names) > 1)
    return Fusions(len(named), attention, dict(fused.most_common()))
