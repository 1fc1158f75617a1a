"""Finds the sets of weights in the content of a checkpoint, whatever training wrapped them in.

Trainers nest state dicts under keys ("state_dict", "model_ema", ...) and prefix the names of tensors ("module.",
"_orig_mod.", "backbone.", ...). Each set of weights of a vision transformer has exactly one patch embedding, so its
tensor shows where the set is, and what its names begin with.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

# Ends of the name of the patch embedding's weight, and the library whose names the tensors have.
ANCHORS = {
    "patch_embed.proj.weight": "timm", "patch_embed.conv1.weight": "timm", "patch_embed.layers.0.weight": "timm",
    "embeddings.patch_embeddings.projection.weight": "transformers", "conv_proj.weight": "torchvision",
}
# Keys and parts of prefixes that mean the moving average of the weights, besides all that contain the word EMA.
AVERAGES = {"teacher", "momentum_encoder", "encoder_k", "target_encoder", "averaging_state"}
# Words in such keys.
AVERAGE_WORDS = {"ema", "swa", "avg", "average", "averaged", "shadow"}
# A moving average that is meant unless the user asks for the other: what DINO and its successors evaluate.
STUDENT = "student"
# Keys of PyTorch Lightning's WeightAveraging: "state_dict" is then the average.
SWAPPED = ("averaging_state", "current_model_state")
# Buffers that wrappers add, which no model has.
COUNTERS = ("n_averaged", "initted", "step")
# Tensors of DINOv2's own code, whose other names are timm's.
DINOV2 = ("mask_token", "register_tokens")
# Nested deeper, no trainer saves weights.
DEPTH = 5


@dataclass(frozen=True)
class WeightSet:
    """One set of weights in a file.

    `state` has the names without `prefix`, `beside` those of it that never had any part of the prefix; `where` are the
    keys that lead to it; `layout` is the library that names tensors like that, None if unknown; `averaged` tells a
    moving average (EMA, teacher) from the model itself.
    """

    where: tuple[str, ...]
    prefix: str
    state: dict[str, Tensor]
    layout: str | None
    averaged: bool
    beside: frozenset[str] = frozenset()

    @property
    def label(self) -> str:
        """Where it is, for messages."""
        return ".".join(self.where) + (f" ({self.prefix}*)" if self.prefix else "") or "the top level"

    @property
    def kind(self) -> str:
        """As `--weights` names it."""
        return "ema" if self.averaged else "model"


@dataclass(frozen=True)
class Choice:
    """The set of weights that was taken; `told` and `assumed` are sentences about it, empty if there is nothing to
    say."""

    taken: WeightSet
    told: str = ""
    assumed: str = ""


def choose_weights(content: Mapping[str, Any], path: object, wanted: str = "auto", strict: bool = True) -> Choice:
    """The set of weights to use.

    Args:
        content: the content of a checkpoint.
        path: the file, for messages.
        wanted: "auto", "model" or "ema".
        strict: refuse the file if it has no `wanted` weights; otherwise take those that it has.

    Raises:
        CheckpointError: there are no weights, none of the `wanted` kind, or several that nothing tells apart.
    """
    sets = find_weights(content)
    if not sets:
        raise CheckpointError(f"{path} holds no state dict; expected tensors under 'model' or at the top level.")
    by_kind = {kind: _different([found for found in sets if found.kind == kind]) for kind in ("model", "ema")}
    if wanted != "auto" and not by_kind[wanted]:
        if strict:
            missing, other = {"ema": ("EMA weights", "ema"), "model": ("weights but their EMA", "model")}[wanted]
            raise CheckpointError(f"{path} holds no {missing}; leave out --weights {other}.")
        wanted = "auto"
    both = all(by_kind.values())
    kind, said = _meant(content, by_kind) if wanted == "auto" else (wanted, True)
    if len(by_kind[kind]) > 1:
        raise CheckpointError(f"{path} holds several sets of weights, {', '.join(s.label for s in by_kind[kind])}; "
                              "save the one to use: torch.save(state_dict, FILE).")
    taken = by_kind[kind][0]
    names = {"model": "those of the model", "ema": "their moving average"}
    other = {"model": "ema", "ema": "model"}[kind]
    told = f"{path}: weights taken from {taken.label}, {names[kind]}." if both and said else ""
    told = told or (f"{path}: weights taken from {taken.label}." if kind == "ema" else "")
    assumed = "" if said or not both else (
        f"{path} holds the weights of the model and their moving average, and does not say which are meant: took "
        f"{names[kind]}, from {taken.label}; --weights {other} takes {by_kind[other][0].label}.")
    return Choice(taken, "" if assumed else told, assumed)


def _different(sets: list[WeightSet]) -> list[WeightSet]:
    """Without copies of the first set."""
    return [*sets[:1], *(other for other in sets[1:] if not _equal(sets[0].state, other.state))]


def _equal(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(
        tensor is other[name] or (_has_values(tensor) and _has_values(other[name]) and torch.equal(tensor, other[name]))
        for name, tensor in state.items())


def _has_values(tensor: Tensor) -> bool:
    """False for sparse, nested and quantised tensors, and for those on the meta device, which cannot be compared."""
    return tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_quantized or tensor.is_meta)


def _meant(content: Mapping[str, Any], by_kind: Mapping[str, list[WeightSet]]) -> tuple[str, bool]:
    """The kind of weights that a file means, and whether it says so."""
    if not by_kind["ema"] or not by_kind["model"]:
        return "ema" if by_kind["ema"] else "model", True
    # DeiT's and DynamicViT's training saves the best epoch of the average under this name.
    epoch = content.get("epoch")
    if (isinstance(epoch, str) and epoch == "best-ema") or all(key in content for key in SWAPPED):
        return "ema", True
    student = any(STUDENT in _words(found) for found in by_kind["model"])
    return "ema" if student else "model", False


def find_weights(content: Mapping[str, Any]) -> list[WeightSet]:
    """All sets of weights in `content`; without any patch embedding, the first dictionary of tensors alone."""
    swapped = all(key in content for key in SWAPPED)
    found = [weights for where, tensors in _dictionaries(content, ()) for weights in _sets(where, tensors, swapped)]
    if found:
        return found
    unknown = next(((where, tensors) for where, tensors in _dictionaries(content, ())), None)
    return [WeightSet(unknown[0], "", unknown[1], None, _averaged(unknown[0], "", swapped))] if unknown else []


def _dictionaries(value: Mapping[Any, Any], where: tuple[str, ...], seen: frozenset[int] = frozenset(),
                  ) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """All dictionaries that hold tensors by name; `seen` are those around this one."""
    tensors = {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, Tensor)}
    if tensors:
        yield where, tensors
    if len(where) < DEPTH:
        for key, item in value.items():
            if isinstance(item, Mapping) and id(item) not in seen | {id(value)}:
                yield from _dictionaries(item, (*where, str(key)), seen | {id(value)})


def _sets(where: tuple[str, ...], tensors: dict[str, Tensor], swapped: bool) -> Iterator[WeightSet]:
    anchors = {name[:-len(end)]: layout for name in tensors for end, layout in ANCHORS.items()
               if name == end or name.endswith(f".{end}")}
    for prefix, layout in anchors.items():
        state = _strip(tensors, prefix, [other for other in anchors if other != prefix])
        dotless = _dotless(state, prefix, tensors)
        shadows = {tensor for names in dotless.values() for tensor in names.values()}
        state = {name: tensor for name, tensor in state.items() if name not in shadows}
        for lead, names in dotless.items():
            yield WeightSet(where, lead, {name: tensors[source] for name, source in names.items()}, layout, True)
        if len(state) > 1:
            first = prefix.split(".")[0]
            beside = frozenset(name for name in state if name in tensors and not name.startswith(f"{first}."))
            layout = "DINOv2" if layout == "timm" and any(name in state for name in DINOV2) else layout
            yield WeightSet(where, prefix, state, layout, _averaged(where, prefix, swapped),
                            beside if prefix else frozenset())


def _dotless(state: Mapping[str, Tensor], prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, str]]:
    """Moving averages of `state` as LitEma keeps them, as buffers in names without dots: by prefix, their names.

    "model.blocks.0.norm1.weight" has the average "model_ema.blocks0norm1weight".
    """
    found: dict[str, dict[str, str]] = {}
    parts = prefix.split(".")
    for lead in dict.fromkeys(name.partition(".")[0] for name in tensors):
        if AVERAGE_WORDS & set(_split(lead)):
            for first in range(len(parts)):
                start = f"{lead}." + "".join(parts[first:])
                sources = {name: start + name.replace(".", "") for name in state}
                names = {name: source for name, source in sources.items() if source in tensors and source != name}
                if any(name.endswith(end) for name in names for end in ANCHORS):
                    found[start] = names
    return found


def _strip(tensors: Mapping[str, Tensor], prefix: str, others: list[str]) -> dict[str, Tensor]:
    """The tensors of the model whose patch embedding has this prefix, without it.

    Names with only its first parts lose these: in "model.backbone.", "model.head.weight" is a part of the model, too.
    Tensors of the `others`, and the wrappers' own counters, are left out. Unchanged if two names would become one.
    """
    leads = ["".join(f"{part}." for part in prefix.split(".")[:count]) for count in range(prefix.count("."), -1, -1)]
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in COUNTERS or any(name.startswith(other) and len(other) > len(prefix) for other in others):
            continue
        lead = next(lead for lead in leads if name.startswith(lead))
        # Of several models in one dictionary, each has the names below parts of the prefix that no other shares.
        if others and (not lead or any(other.startswith(lead) for other in others)):
            continue
        short = name[len(lead):]
        if short in state:
            return dict(tensors)
        state[short] = tensor
    return state


def _words(weights: WeightSet) -> set[str]:
    return {*weights.where, *weights.prefix.split(".")}


def _averaged(where: tuple[str, ...], prefix: str, swapped: bool) -> bool:
    if swapped and where[:1] == ("state_dict",):
        return True
    words = {*where, *prefix.split(".")}
    return bool(words & AVERAGES) or any(AVERAGE_WORDS & set(_split(word)) for word in words)


def _split(name: str) -> list[str]:
    """The words of `modelEma`, `model_ema` and `EMACallback`, in lower case."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
