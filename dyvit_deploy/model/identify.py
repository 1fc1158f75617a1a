"""Which model a checkpoint is: by what it records, by options, and by the names and shapes of its tensors.

What neither says is assumed, and each assumption is told. Where several known models fit the tensors and want
different images, none is assumed.
"""
from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ..artifacts.files import TIMM_PREFIX, is_timm
from ..checkpoints.recorded import Recorded, Steps
from ..config import Arguments, LoadConfig, ModelConfig, Preprocess, as_arguments
from ..errors import CheckpointError, ConfigError
from . import build, zoo

PREDICTOR = "score_predictor."
# Tensors that do not tell one architecture from another: their size follows from the data, or only training has them.
UNSPECIFIC = re.compile(r"(head|head_dist|aux_head|score_predictor|resume)\.|pos_embed$|mask_token$|blocks\.[1-9]\d*\.")
# timm's modules with VisionTransformers that have no tensors of their own besides those of the plain one.
TIMM_MODULES = ("vision_transformer", "deit")
# So many tensors may differ from the model that is named in a message.
CLOSE = 4
Signature = frozenset[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Identity:
    """The model of a checkpoint. `assumed` are statements about what no file says, for people."""

    model: ModelConfig
    assumed: tuple[str, ...] = ()


def identify(state: Mapping[str, Tensor], recorded: Recorded, where: str, load: LoadConfig = LoadConfig()) -> Identity:
    """The model of the tensors `state`, which have timm's names.

    Args:
        recorded: what the file, or a configuration beside it, says.
        where: the file, for messages.
        load: options, which have precedence.

    Raises:
        CheckpointError: no known model fits, or several do that want different images.
        ConfigError: an option does not fit the model.
    """
    named = load.model or (where if is_timm(where) else recorded.model)
    asked = Steps(load.mean, load.std, load.crop, None, None, load.interpolation)
    from_file = named is None or named == recorded.model
    said = asked.over(recorded.steps) if from_file else asked
    usual, assumed = recorded.usual, list[str]()
    if named:
        options = {**dict(recorded.options if from_file else ()), **dict(load.model_args)}
        try:
            model = build.resolve(named, _arguments(options, state))
        except ConfigError as error:
            if load.model or load.model_args or is_timm(where):
                raise
            raise CheckpointError(f"{where} is a {named} by {recorded.source}, which cannot be used: {error}"
                                  ) from error
        if load.model:
            assumed += _assumed_tag(load.model, said)
    elif recorded.config:
        model = build.with_options(recorded.config, load.model_args)
        if missing := said.missing:
            assumed.append(f"{_list(missing)} of the published {model.name} models of transformers"
                           f" ({_describe(said.over(usual), missing)})")
    else:
        model, statement = _infer(state, recorded, where, said, load)
        assumed.append(statement)
    if "head.weight" in state and state["head.weight"].ndim == 2:
        model = dataclasses.replace(model, classes=state["head.weight"].shape[0])
    size = load.image_size or (recorded.image_size if from_file else None) or trained_size(model, state, where)
    return Identity(dataclasses.replace(model.with_image_size(size), preprocess=prepare(model, said, usual, size)),
                    tuple(assumed))


def prepare(model: ModelConfig, said: Steps, usual: Steps, size: tuple[int, int]) -> Preprocess:
    """The preprocessing of `model` at (height, width) `size`: what is `said`, else what is `usual`, else its own."""
    steps, own = said.over(usual), model.with_image_size(size).preprocess
    if model.timm_name:
        own = build.timm_preprocess(build.timm_weights(model.timm_name), size)
    short, squash = own.short_side, own.squash
    if steps.crop or steps.short_side:
        short = math.floor(min(size) / steps.crop) if steps.crop else steps.short_side
        squash = bool(own.squash if steps.squash is None else steps.squash)
        if squash and short == min(size):
            short, squash = None, False
    return Preprocess(short, _three(steps.mean) or own.mean, _three(steps.std) or own.std,
                      steps.interpolation or own.interpolation, squash)


def _three(values: tuple[float, ...] | None) -> tuple[float, float, float] | None:
    """One value, as models of one channel record it, counts for all."""
    if values is None:
        return None
    red, green, blue = values * 3 if len(values) == 1 else values
    return red, green, blue


def _arguments(options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Arguments:
    """timm's arguments, with the pooling that the tensors show where none is given."""
    averages = "fc_norm.weight" in state and "norm.weight" not in state
    pooling = {"global_pool": "avg"} if averages else {}
    return as_arguments(pooling | dict(options))


def _assumed_tag(name: str, said: Steps) -> list[str]:
    """What is assumed when a timm model is named without its weights, and those have different preprocessing."""
    bare = name.removeprefix(TIMM_PREFIX)
    if not is_timm(name) or "." in bare or (said.mean and said.std):
        return []
    by_steps = _tags_by_steps(bare)
    if len(by_steps) < 2:
        return []
    own = build.timm_weights(bare)
    others = next(tags[0] for steps, tags in by_steps.items() if steps != (tuple(own["mean"]), tuple(own["std"])))
    return [f"mean {_numbers(own['mean'])} and std {_numbers(own['std'])}, of the default weights of {name}; others of "
            f"that model differ, such as {name}.{others}"]


def _tags_by_steps(architecture: str) -> dict[tuple[tuple[float, ...], tuple[float, ...]], list[str]]:
    """The tags of timm's weights of an architecture, by their mean and std."""
    found: dict[tuple[tuple[float, ...], tuple[float, ...]], list[str]] = {}
    for full in timm.list_pretrained(f"{architecture}.*"):
        weights = get_pretrained_cfg(full)
        if weights is not None:
            found.setdefault((tuple(weights.mean), tuple(weights.std)), []).append(full.partition(".")[2])
    return found


def trained_size(model: ModelConfig, state: Mapping[str, Tensor], where: str) -> tuple[int, int]:
    """The (height, width) that the positions in `state` were trained at: the model's own, if their number fits, else
    that of a square of patches.

    Raises:
        CheckpointError: the number of positions is no square.
    """
    stored = state.get("pos_embed")
    if stored is None or stored.ndim != 3:
        return model.image_size
    patches = stored.shape[1] - build.placed_prefix(model)
    if patches == model.patches:
        return model.image_size
    side = math.isqrt(max(patches, 0))
    if not side or side * side != patches:
        raise CheckpointError(f"{where} has {patches} patch positions, which do not form a square grid; "
                              "give the image size it was trained at with --image-size HEIGHTxWIDTH.")
    return side * model.patch_size, side * model.patch_size


def _infer(state: Mapping[str, Tensor], recorded: Recorded, where: str, said: Steps, load: LoadConfig,
           ) -> tuple[ModelConfig, str]:
    """The known model that fits the tensors, and what is assumed with it."""
    for name, rank in (("pos_embed", 3), ("head.weight", 2), ("blocks.0.attn.qkv.weight", 2)):
        if name not in state or state[name].ndim != rank:
            raise CheckpointError(f"{where} has no tensor {name!r} of {rank} dimensions, so it is not a ViT "
                                  "checkpoint; name its architecture with --model if it is one of timm's.")
    # Of a file with a tensor too few or too many, the closest model tells which.
    found = _of_family(list(fitting_models(state) or fitting_models(state, CLOSE)), state, recorded)
    if not found:
        width, depth = state["pos_embed"].shape[-1], count_blocks(state)
        raise CheckpointError(f"{where} has width {width} and depth {depth}, and no known model has its tensors; "
                              "name its architecture with --model timm:NAME (dyvit models lists the others).")
    different: dict[object, ModelConfig] = {}
    for model in found:
        different.setdefault((said.mean or model.preprocess.mean, said.std or model.preprocess.std, model.heads), model)
    if len(different) > 1 and not load.model_args:
        listed = "; ".join(f"{m.name} with mean {_numbers(m.preprocess.mean)}, std {_numbers(m.preprocess.std)}"
                           for m in different.values())
        raise CheckpointError(f"{where} does not say which model it is, and its tensors fit several that want "
                              f"different images ({listed}); name yours with --model, or give --mean and --std.")
    model = build.with_options(found[0], load.model_args)
    return model, f"{model.name} by its tensors, with {_features(model)}, {_describe_model(model, said)}"


def _of_family(found: list[ModelConfig], state: Mapping[str, Tensor], recorded: Recorded) -> list[ModelConfig]:
    """The models that also fit what is known of the training."""
    # Predictors are DynamicViT's, whose code trains the models of the zoo.
    if any(name.startswith(PREDICTOR) for name in state):
        found = [model for model in found if not model.timm_name] or found
    family = recorded.family
    if family:
        found = [m for m in found if m.name.removeprefix(TIMM_PREFIX).startswith(family)] or found
    stored = [m for m in found if m.patches + build.placed_prefix(m) == state["pos_embed"].shape[1]]
    return stored or found


def fitting_models(state: Mapping[str, Tensor], differing: int = 0) -> list[ModelConfig]:
    """The models of the zoo and of timm whose tensors have the names and shapes of `state`, apart from the number of
    classes and of positions; a model of timm once per mean and std of its weights.

    With `differing`, up to so many tensors may be missing, too many, or of another shape (which counts twice); the
    closest models are returned.
    """
    wanted, depth = signature(state), count_blocks(state)
    swapped = frozenset((re.sub(r"^fc_norm\.", "norm.", name), shape) for name, shape in wanted)
    found: dict[int, list[ModelConfig]] = {}
    for config in zoo.MODELS.values():
        distance = len(_zoo_signature(dataclasses.replace(config, depth=1)) ^ wanted)
        if config.depth == depth and distance <= differing:
            found.setdefault(distance, []).append(config)
    for name, one_block in _timm_signatures().items():
        plain, average = len(one_block ^ wanted), len(one_block ^ swapped)
        options: Arguments = (("global_pool", "avg"),) if average < plain else ()
        if min(plain, average) <= differing and (variants := list(_variants(name, options, depth))):
            found.setdefault(min(plain, average), []).extend(variants)
    return found[min(found)] if found else []


def _variants(name: str, options: Arguments, depth: int) -> Iterator[ModelConfig]:
    """A model of timm once per mean and std of its weights, if it has `depth` blocks."""
    by_steps = _tags_by_steps(name)
    for tags in by_steps.values() or [[""]]:
        config = build.resolve(TIMM_PREFIX + (f"{name}.{tags[0]}" if len(by_steps) > 1 else name), options)
        if config.depth == depth:
            yield config


def count_blocks(state: Mapping[str, Tensor]) -> int:
    """The number of transformer blocks in `state`."""
    numbers = [int(match.group(1)) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))]
    return 1 + max(numbers, default=-1)


def signature(state: Mapping[str, Tensor]) -> Signature:
    """Names and shapes of the tensors that tell architectures apart; of the blocks, those of the first."""
    return frozenset((name, _shape(name, tensor)) for name, tensor in state.items() if not UNSPECIFIC.match(name))


def _shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    # The number of channels is not the architecture's.
    return (shape[0], *shape[2:]) if name == "patch_embed.proj.weight" and len(shape) == 4 else shape


@functools.lru_cache(maxsize=32)
def _zoo_signature(config: ModelConfig) -> Signature:
    with torch.device("meta"):
        return signature(build.build_backbone(config).state_dict())


@functools.cache
def _timm_signatures() -> dict[str, Signature]:
    """The signature of each VisionTransformer of timm, of which one block is built."""
    found = {}
    names = [name for module in TIMM_MODULES for name in timm.list_models(module=module)]
    with torch.device("meta"):
        for name in names:
            model = timm.create_model(name, depth=1, weight_init="skip")
            if isinstance(model, VisionTransformer):
                found[name] = signature(model.state_dict())
    return found


def _features(model: ModelConfig) -> str:
    """What the tensors of a plain ViT do not show."""
    with torch.device("meta"):
        backbone: Any = build.build_backbone(dataclasses.replace(model, depth=1))
    block, pooling = backbone.blocks[0], {"token": "class-token", "avg": "average"}.get(backbone.global_pool)
    act = getattr(getattr(block, "mlp", None), "act", None)
    parts = [f"{model.heads} heads", f"{pooling or backbone.global_pool} pooling"]
    parts += [type(act).__name__] if act is not None else []
    eps = next((m.eps for m in block.modules() if hasattr(m, "eps")), None)
    return ", ".join([*parts, *([f"norm epsilon {eps:g}"] if eps else [])])


def _describe_model(model: ModelConfig, said: Steps) -> str:
    own = model.preprocess
    crop = None if own.short_side is None else min(model.image_size) / own.short_side
    steps = said.over(Steps(own.mean, own.std, crop, None, own.squash, own.interpolation))
    return _describe(steps, said.missing)


def _describe(steps: Steps, names: tuple[str, ...]) -> str:
    crop = (f"crop {steps.crop:.3g}" if steps.crop else f"short side {steps.short_side}" if steps.short_side else
            "resized without crop")
    texts = {"mean": steps.mean and f"mean {_numbers(steps.mean)}", "std": steps.std and f"std {_numbers(steps.std)}",
             "crop": crop, "interpolation": steps.interpolation}
    return ", ".join(str(texts[name]) for name in names)


def _numbers(values: Any) -> str:
    return ",".join(f"{value:g}" for value in values)


def _list(names: tuple[str, ...]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
