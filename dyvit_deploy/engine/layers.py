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
from types import MappingProxyType

from ..graph.names import node_label
from ..options import JsonConfig
from .network import where

# As the inspector spells data types; formats of TensorRT 10 follow them, as in "Half:linear".
TYPES = {"float": "float32", "fp32": "float32", "half": "float16", "fp16": "float16", "bfloat16": "bfloat16",
         "bf16": "bfloat16", "int8": "int8", "fp8": "float8", "int32": "int32", "int64": "int64", "bool": "bool",
         "uint8": "uint8"}
WIDTH = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "float8": 1}
# Layers that are matrix products, as opposed to the pointwise kernels that share a product's metadata.
PRODUCT_LAYERS = ("gemm", "correlation", "conv", "fusion", "matrix", "fc")
# Generated kernels that multiply, by their names: _gemm_mha_v2, _gemv_mha_v1, __myl_FcAdd; their kind is "kgen".
PRODUCT_KERNELS = re.compile(r"^_+(gemm|gemv|f?mha)_|^__myl_\w*?Fc(?![a-z])")
SOFTMAX, MATMUL = "/Softmax", "/MatMul"


@dataclass(frozen=True)
class EngineLayer(JsonConfig):
    """One layer: `inputs` are the data types it reads, `nodes` the graph nodes that it stands for.

    `constants` are the data types of its weights where the library lists them apart; empty where they are among
    the inputs, as in lists of TensorRT 10. Tensors of one element, which only scale, are left out of both.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    nodes: tuple[str, ...]
    constants: tuple[str, ...] = ()


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
            inputs, constants = ([t.get("Datatype") or t.get("Format/Datatype") or "" for t in layer.get(part, [])
                                  if set(t.get("Dimensions", [0])) - {1}] for part in ("Inputs", "Constants"))
            weights = [layer["Weights"].get("Type", "")] if isinstance(layer.get("Weights"), dict) else []
            layers.append(EngineLayer(layer.get("Name", ""), layer.get("LayerType", ""), _types(inputs),
                                      _nodes(layer.get("Metadata", "")), _types([*weights, *constants])))
    return layers


LINE = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>.*?), Inputs: \[(?P<inputs>.*?)\], "
                  r"(?:Constants: \[(?P<constants>.*)\], )?Outputs: \[.*?\], .*?Metadata: ?(?P<nodes>.*)$")


def from_log(lines: Iterable[str]) -> list[EngineLayer]:
    """The layers in the builder's log; lines of another form are left out."""
    kinds = re.compile(r"Datatype: (\w+)")
    scalar = re.compile(r"\{ Name: [^{}]*?Dimensions: \[(?:1(?:,1)*)?\][^{}]*\},? ?")
    # Brackets nest in the lists of tensors, so strides and dimensions go first.
    nested = re.compile(r"(Dimensions|Strides|StrideOrder): \[[^\]]*\],? ?")
    found = (LINE.match(nested.sub("", scalar.sub("", line))) for line in lines)
    return [EngineLayer(m["name"], m["kind"], _types(kinds.findall(m["inputs"])), _nodes(m["nodes"]),
                        _types(kinds.findall(m["constants"] or ""))) for m in found if m]


def _types(kinds: Iterable[str]) -> tuple[str, ...]:
    said = (re.findall(r"\w+", kind.lower()) for kind in kinds if kind)
    # TensorRT 10 says it in a sentence, as in "Row major linear FP16 format".
    return tuple(next((TYPES[word] for word in words if word in TYPES), words[0]) for words in said if words)


def _nodes(metadata: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\[ONNX Layer: ([^\]\x1e\x1f]*)\]", metadata))


def engine_precisions(layers: Sequence[EngineLayer], products: Iterable[str],
                      computed: Mapping[str, int] = MappingProxyType({})) -> dict[str, str]:
    """The data type in which the engine multiplies, for each of the graph's `products` that it names.

    A product's name is in the metadata of every layer that a part of it went to, see `_multiplying`. Where
    several layers multiply for it, the widest counts.

    Args:
        computed: how many operands of a product are computed, 1 or 2, in the order they run, see
            `graph.computed_operands`; of one without an entry, the narrowest input decides.
    """
    wanted, found = tuple(products), {}
    for node in wanted:
        types = [_operand_type(layer, node, computed) for layer in _multiplying(layers, node, frozenset(wanted))]
        if known := [kind for kind in types if kind]:
            found[node] = max(known, key=WIDTH.__getitem__)
    return found


def _multiplying(layers: Sequence[EngineLayer], node: str, products: frozenset[str]) -> list[EngineLayer]:
    """The layers that compute the product `node`.

    They are of a kind in PRODUCT_LAYERS, else generated kernels with a name of PRODUCT_KERNELS, else all that have the
    node in their metadata. A fused kernel also names products that were computed before it, so that of these layers
    only those with the fewest products count.
    """
    named = [layer for layer in layers if node in layer.nodes]
    by_kind = [layer for layer in named if any(kind in layer.kind.lower() for kind in PRODUCT_LAYERS)]
    by_name = [layer for layer in named if PRODUCT_KERNELS.search(layer.name)]
    candidates = by_kind or by_name or named
    fewest = min((len(products & set(layer.nodes)) for layer in candidates), default=0)
    return [layer for layer in candidates if len(products & set(layer.nodes)) == fewest]


def _operand_type(layer: EngineLayer, node: str, computed: Mapping[str, int]) -> str | None:
    """The data type in which `layer` multiplies for `node`, None where it does not tell.

    Operands are the narrowest inputs: residuals, biases and masks that were fused in may be wider.
    """
    types = [kind for kind in layer.inputs if kind in WIDTH]
    if not types or layer.inputs[0] not in TYPES.values():
        return None
    ordered = sorted(types, key=WIDTH.__getitem__)
    if computed.get(node) == 2:
        # The result of one product is an operand of the next. Fewer inputs than operands are packed, as q, k and v.
        fused = [other for other in computed if computed[other] == 2 and other in layer.nodes]
        last = 1 + fused.index(node)
        if len(types) <= len(fused):
            return ordered[0]
        # In every list seen they come in the order of q, k and v, and before a mask.
        placed = types[last] if last > 1 else max(types[:2], key=WIDTH.__getitem__)
        return min(placed, ordered[last], key=WIDTH.__getitem__)
    weights = [kind for kind in layer.constants if kind in WIDTH]
    if node in computed and weights:
        return max(ordered[0], min(weights, key=WIDTH.__getitem__), key=WIDTH.__getitem__)
    if node in computed:
        # The weight is an input, too. In every list seen the activations come first, which tells where it is missing.
        return min(types[0], ordered[min(1, len(ordered) - 1)], key=WIDTH.__getitem__)
    return ordered[0]


def precision_fallbacks(wanted: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
    """The products that the engine computes in a wider type than the graph asks for, and what was asked, in the order
    they run."""
    return {node: precision for node, precision in wanted.items()
            if node in found and WIDTH.get(precision, 4) < WIDTH.get(found[node], 4)}


def fallback_text(fallbacks: Mapping[str, str], became: Mapping[str, str]) -> str:
    """`fallbacks` (see above) by part and node, with what was asked and what they became; five of them at most."""
    listed = [f"{where(node)} asked {asked}, became {became[node]}" for node, asked in list(fallbacks.items())[:5]]
    return "; ".join(listed) + (f"; and {len(fallbacks) - 5} more" if len(fallbacks) > 5 else "")


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
        row = rows.setdefault(re.sub(r" (attention|MLP)$", "", node_label(node)), [])
        if words not in row:
            row.append(words)
    return {part: ", ".join(words) for part, words in rows.items()}
