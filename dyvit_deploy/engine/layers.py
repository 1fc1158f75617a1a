"""What a built engine computes, layer by layer, in the model's own names.

An engine's layers are fusions with names of their own; what they came from stands in their metadata. Two
sources tell of them: the engine inspector (JSON, needs a GPU) and, on a machine without one, the list that
the builder of TensorRT for RTX writes to its verbose log.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..config import JsonConfig
from ..parts import part_name, part_names

# As the inspector spells data types; formats of TensorRT 10 follow them, as in "Half:linear".
TYPES = {"float": "float32", "fp32": "float32", "half": "float16", "fp16": "float16", "bfloat16": "bfloat16",
         "bf16": "bfloat16", "int8": "int8", "fp8": "float8", "int32": "int32", "int64": "int64", "bool": "bool",
         "uint8": "uint8"}
WIDTH = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "float8": 1}
# Layers that are matrix products, as opposed to the pointwise kernels that share a product's metadata.
PRODUCT_LAYERS = ("gemm", "correlation", "conv", "fusion", "matrix", "fc")
SOFTMAX, MATMUL = "/Softmax", "/MatMul"


@dataclass(frozen=True)
class EngineLayer(JsonConfig):
    """One layer: `inputs` are the data types it reads, `nodes` the graph nodes that it stands for."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    nodes: tuple[str, ...]


def from_inspector(text: str) -> list[EngineLayer]:
    """The layers in the inspector's JSON, none where it is no JSON; without detailed verbosity these are names,
    which tell nothing."""
    layers = []
    try:
        told = json.loads(text, strict=False).get("Layers", [])            # metadata hold control characters
    except ValueError:
        return []
    for layer in told:
        if isinstance(layer, dict):
            kinds = (t.get("Datatype") or t.get("Format/Datatype") or "" for t in layer.get("Inputs", []))
            layers.append(EngineLayer(layer.get("Name", ""), layer.get("LayerType", ""), _types(kinds),
                                      _nodes(layer.get("Metadata", ""))))
    return layers


LINE = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>.*?), Inputs: \[(?P<inputs>.*?)\], Constants: \[.*\], "
                  r"Outputs: \[.*?\], .*?Metadata: ?(?P<nodes>.*)$")


def from_log(lines: Iterable[str]) -> list[EngineLayer]:
    """The layers in the builder's log; lines of another form are left out."""
    inputs = re.compile(r"Datatype: (\w+)")
    # Brackets nest in the lists of tensors, so strides and dimensions go first.
    found = (LINE.match(re.sub(r"(Dimensions|Strides|StrideOrder): \[[^\]]*\],? ?", "", line)) for line in lines)
    return [EngineLayer(m["name"], m["kind"], _types(inputs.findall(m["inputs"])), _nodes(m["nodes"]))
            for m in found if m]


def _types(kinds: Iterable[str]) -> tuple[str, ...]:
    said = (re.findall(r"\w+", kind.lower()) for kind in kinds if kind)
    # TensorRT 10 says it in a sentence, as in "Row major linear FP16 format".
    return tuple(next((TYPES[word] for word in words if word in TYPES), words[0]) for words in said if words)


def _nodes(metadata: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\[ONNX Layer: ([^\]\x1e\x1f]*)\]", metadata))


def engine_precisions(layers: Sequence[EngineLayer], products: Iterable[str]) -> dict[str, str]:
    """The data type in which the engine multiplies, for each of the graph's `products` that it names.

    A product's name is in the metadata of every layer that a part of it went to; the one that multiplies is
    of a kind in PRODUCT_LAYERS, or a fused kernel. Its narrowest input is what it multiplies in: residuals
    and biases that were fused into it are wider.
    """
    found = {}
    for node in products:
        named = [layer for layer in layers if node in layer.nodes]
        multiplying = [layer for layer in named if any(kind in layer.kind.lower() for kind in PRODUCT_LAYERS)]
        types = [t for layer in multiplying or named for t in layer.inputs if t in WIDTH]
        if types:
            found[node] = min(types, key=WIDTH.__getitem__)
    return found


def too_wide(wanted: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Products that the engine computes in a wider type than the graph asks for, in the order they run."""
    return [node for node, precision in wanted.items()
            if node in found and WIDTH.get(precision, 4) < WIDTH.get(found[node], 4)]


def complaint(wanted: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """One sentence about products that did not come out as asked; None when all did."""
    wide = too_wide(wanted, found)
    if not wide:
        return None
    lower = sum(WIDTH.get(p, 4) < 4 for p in wanted.values())
    parts = part_names(wide)
    listed = ", ".join(parts[:5]) + (f" and {len(parts) - 5} more" if len(parts) > 5 else "")
    kinds = ", ".join(sorted({f"{wanted[node]} became {found[node]}" for node in wide}))
    return f"{len(wide)} of {lower} matrix products are not in the precision that was asked for ({kinds}): {listed}"


def fused_attention(layers: Sequence[EngineLayer]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Graph names of the attentions that are one kernel, and of those that are several."""
    fused: list[str] = []
    apart: list[str] = []
    for softmax in dict.fromkeys(node for layer in layers for node in layer.nodes if node.endswith(SOFTMAX)):
        module = softmax.removesuffix(SOFTMAX)
        whole = any(softmax in layer.nodes and sum(n.startswith(module + MATMUL) for n in layer.nodes) >= 2
                    for layer in layers)
        (fused if whole else apart).append(module)
    return tuple(fused), tuple(apart)


def to_rows(precisions: Mapping[str, str], fused: Sequence[str]) -> dict[str, str]:
    """Per part of the model, what its products are computed in: `attn.qkv int8, attn float16 fused`."""
    rows: dict[str, list[str]] = {}
    for node, precision in precisions.items():
        module = node.split("/")[0]
        words = f"{re.sub(r'^([a-z_]+[.][0-9]+[.]|patch_embed[.])', '', module)} {precision}"
        words += " fused" if module in fused else ""
        row = rows.setdefault(re.sub(r" (attention|MLP)$", "", part_name(node)), [])
        if words not in row:
            row.append(words)
    return {part: ", ".join(words) for part, words in rows.items()}
