"""What a built engine computes, layer by layer, in the names of the model.

The layers of an engine are fusions with names of their own; their metadata lists the graph nodes they came from.
There are two sources: the engine inspector (JSON, needs a GPU) and, on a machine without a GPU, the list that the
builder of TensorRT for RTX writes to its verbose log.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ..graph.names import node_label
from ..settings.fields import JsonConfig
from .network import where

# The inspector's names of data types; TensorRT 10 appends the memory format, as in "Half:linear".
TYPES = {"float": "float32", "fp32": "float32", "half": "float16", "fp16": "float16", "bfloat16": "bfloat16",
         "bf16": "bfloat16", "int8": "int8", "fp8": "float8", "int32": "int32", "int64": "int64", "bool": "bool",
         "uint8": "uint8"}
WIDTH = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "float8": 1}
# Kinds of layers that multiply matrices, unlike the pointwise kernels that share a product's metadata.
PRODUCT_LAYERS = ("gemm", "correlation", "conv", "fusion", "matrix", "fc")
# Names of generated kernels that multiply (_gemm_mha_v2, _gemv_mha_v1, __myl_FcAdd); the kind of all of them is "kgen".
PRODUCT_KERNELS = re.compile(r"^_+(gemm|gemv|f?mha)_|^__myl_\w*?Fc(?![a-z])")
SOFTMAX, MATMUL = "/Softmax", "/MatMul"


@dataclass(frozen=True)
class EngineLayer(JsonConfig):
    """One layer: `inputs` are the data types it reads, `nodes` the graph nodes it implements.

    `constants` are the data types of its weights if the library lists them separately; TensorRT 10 lists them among the
    inputs. Both omit tensors of one element, which are only scales.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    nodes: tuple[str, ...]
    constants: tuple[str, ...] = ()


def from_inspector(text: str) -> list[EngineLayer]:
    """The layers in the inspector's JSON; empty if `text` is not JSON.

    Layers are skipped that the inspector lists by name only, as it does without detailed verbosity.
    """
    layers = []
    try:
        # The metadata contains control characters, which strict parsing refuses.
        listed = json.loads(text, strict=False).get("Layers", [])
    except ValueError:
        return []
    for layer in listed:
        if isinstance(layer, dict):
            inputs, constants = ([t.get("Datatype") or t.get("Format/Datatype") or "" for t in layer.get(key, [])
                                  if set(t.get("Dimensions", [0])) - {1}] for key in ("Inputs", "Constants"))
            weights = [layer["Weights"].get("Type", "")] if isinstance(layer.get("Weights"), dict) else []
            layers.append(EngineLayer(layer.get("Name", ""), layer.get("LayerType", ""), _types(inputs),
                                      _nodes(layer.get("Metadata", "")), _types([*weights, *constants])))
    return layers


LINE = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>.*?), Inputs: \[(?P<inputs>.*?)\], "
                  r"(?:Constants: \[(?P<constants>.*)\], )?Outputs: \[.*?\], .*?Metadata: ?(?P<nodes>.*)$")


def from_log(lines: Iterable[str]) -> list[EngineLayer]:
    """The layers in the builder's log; lines of any other form are skipped."""
    kinds = re.compile(r"Datatype: (\w+)")
    scalar = re.compile(r"\{ Name: [^{}]*?Dimensions: \[(?:1(?:,1)*)?\][^{}]*\},? ?")
    # Dimensions and strides are removed first, because LINE does not match nested brackets.
    nested = re.compile(r"(Dimensions|Strides|StrideOrder): \[[^\]]*\],? ?")
    matches = (LINE.match(nested.sub("", scalar.sub("", line))) for line in lines)
    return [EngineLayer(m["name"], m["kind"], _types(kinds.findall(m["inputs"])), _nodes(m["nodes"]),
                        _types(kinds.findall(m["constants"] or ""))) for m in matches if m]


def _types(kinds: Iterable[str]) -> tuple[str, ...]:
    # TensorRT 10 writes the data type within a phrase, as in "Row major linear FP16 format".
    phrases = (re.findall(r"\w+", kind.lower()) for kind in kinds if kind)
    return tuple(next((TYPES[word] for word in words if word in TYPES), words[0]) for words in phrases if words)


def _nodes(metadata: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\[ONNX Layer: ([^\]\x1e\x1f]*)\]", metadata))


def engine_precisions(layers: Sequence[EngineLayer], products: Iterable[str],
                      computed: Mapping[str, int] = MappingProxyType({})) -> dict[str, str]:
    """The data type in which the engine multiplies, for each of the graph's `products` that its layers name.

    The metadata of every layer that computes a part of a product names the product, see `_multiplying`. If several
    layers multiply for one product, the widest type counts.

    Args:
        computed: by product, in the order they run, how many of its operands are computed (1 or 2), see
            `graph.read.computed_operands`. For a product without an entry, the narrowest input decides.
    """
    nodes, precisions = tuple(products), {}
    for node in nodes:
        types = [_operand_type(layer, node, computed) for layer in _multiplying(layers, node, frozenset(nodes))]
        if known := [kind for kind in types if kind]:
            precisions[node] = max(known, key=WIDTH.__getitem__)
    return precisions


def _multiplying(layers: Sequence[EngineLayer], node: str, products: frozenset[str]) -> list[EngineLayer]:
    """The layers that compute the product `node`.

    Among the layers with the node in their metadata these are the ones of a kind in PRODUCT_LAYERS, else those named
    like PRODUCT_KERNELS, else all. A fused kernel also names products that were computed before it, so only the layers
    that name the fewest products count.
    """
    named = [layer for layer in layers if node in layer.nodes]
    by_kind = [layer for layer in named if any(kind in layer.kind.lower() for kind in PRODUCT_LAYERS)]
    by_name = [layer for layer in named if PRODUCT_KERNELS.search(layer.name)]
    candidates = by_kind or by_name or named
    fewest = min((len(products & set(layer.nodes)) for layer in candidates), default=0)
    return [layer for layer in candidates if len(products & set(layer.nodes)) == fewest]


def _operand_type(layer: EngineLayer, node: str, computed: Mapping[str, int]) -> str | None:
    """The data type in which `layer` multiplies for `node`; None if unknown.

    The operands are the narrowest inputs: residuals, biases and masks that were fused in may be wider.
    """
    types = [kind for kind in layer.inputs if kind in WIDTH]
    if not types or layer.inputs[0] not in TYPES.values():
        return None
    ordered = sorted(types, key=WIDTH.__getitem__)
    if computed.get(node) == 2:
        # The result of one product is an operand of the next. A layer with fewer inputs than operands reads them
        # packed into one tensor, as q, k and v.
        fused = [product for product in computed if computed[product] == 2 and product in layer.nodes]
        last = 1 + fused.index(node)
        if len(types) <= len(fused):
            return ordered[0]
        # In every list seen so far the order of the inputs is q, k, v, mask.
        placed = types[last] if last > 1 else max(types[:2], key=WIDTH.__getitem__)
        return min(placed, ordered[last], key=WIDTH.__getitem__)
    weights = [kind for kind in layer.constants if kind in WIDTH]
    if node in computed and weights:
        return max(ordered[0], min(weights, key=WIDTH.__getitem__), key=WIDTH.__getitem__)
    if node in computed:
        # The weight is an input, too. In every list seen so far the activations come first, also without a weight.
        return min(types[0], ordered[min(1, len(ordered) - 1)], key=WIDTH.__getitem__)
    return ordered[0]


def precision_fallbacks(wanted: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
    """The products that the engine computes in a wider type than the graph requests, in the order they run, each with
    the requested type."""
    return {node: precision for node, precision in wanted.items()
            if node in found and WIDTH.get(precision, 4) < WIDTH.get(found[node], 4)}


def fallback_text(fallbacks: Mapping[str, str], became: Mapping[str, str]) -> str:
    """One clause for each of `precision_fallbacks`, with the requested type and the one it `became`; at most five."""
    listed = [f"{where(node)} asked {requested}, became {became[node]}"
              for node, requested in list(fallbacks.items())[:5]]
    return "; ".join(listed) + (f"; and {len(fallbacks) - 5} more" if len(fallbacks) > 5 else "")


def fused_attention(layers: Sequence[EngineLayer]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Graph names of the attention modules that run as one kernel, and of those that run as several."""
    fused: list[str] = []
    apart: list[str] = []
    for softmax in dict.fromkeys(node for layer in layers for node in layer.nodes if node.endswith(SOFTMAX)):
        module = softmax.removesuffix(SOFTMAX)
        whole = any(softmax in layer.nodes and sum(n.startswith(module + MATMUL) for n in layer.nodes) >= 2
                    for layer in layers)
        (fused if whole else apart).append(module)
    return tuple(fused), tuple(apart)


def to_rows(precisions: Mapping[str, str], fused: Sequence[str]) -> dict[str, str]:
    """The precisions of the products by part of the model, as in `attn.qkv int8, attn float16 fused`."""
    rows: dict[str, list[str]] = {}
    for node, precision in precisions.items():
        module = node.split("/")[0]
        label = f"{re.sub(r'^([a-z_]+[.][0-9]+[.]|patch_embed[.])', '', module)} {precision}"
        label += " fused" if module in fused else ""
        row = rows.setdefault(re.sub(r" (attention|MLP)$", "", node_label(node)), [])
        if label not in row:
            row.append(label)
    return {part: ", ".join(labels) for part, labels in rows.items()}
