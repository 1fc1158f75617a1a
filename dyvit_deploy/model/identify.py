"""Which model a checkpoint is: by what it records, by options, and by the names and shapes of its tensors.

What neither says is assumed, and each assumption is told. Where several known models fit the tensors and want
different images, none is assumed.
"""
from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ..artifacts.files import TIMM_PREFIX, is_timm
from ..checkpoints.recorded import Recorded, Steps
from ..config import LoadConfig, ModelConfig
from ..errors import CheckpointError, ConfigError
from ..settings.fields import Arguments, as_arguments, numbers_text
from ..settings.notes import tell
from ..settings.preprocessing import Preprocess
from . import build, zoo

PREDICTOR = "score_predictor."
# Tensors that do not tell one architecture from another: their size follows from the data, or only training has them.
UNSPECIFIC = re.compile(r"(head|head_dist|aux_head|score_predictor|resume)\.|pos_embed$|blocks\.[1-9]\d*\.")
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
        CheckpointError: no known model fits, or several do that compute differently or want different images.
        ConfigError: an option does not fit the model.
    """
    if recorded.problem and not load.model:
        raise CheckpointError(recorded.problem)
    check_channels(state, where)
    recorded = _of_model(recorded, load.model, where)
    said = Steps(load.mean, load.std, load.crop, None, None, load.interpolation).over(recorded.steps)
    named, similar = load.model or (where if is_timm(where) else recorded.model), list[str]()
    if named:
        model = _named(named, state, recorded, where, load)
    elif recorded.config:
        model = build.with_options(recorded.config, load.model_args)
    else:
        model, similar = _infer(state, recorded, where, said, load)
    _check_depth(model.depth, state, where, model.name)
    model = dataclasses.replace(model, classes=_count_classes(state) or model.classes)
    given = load.image_size or recorded.image_size
    size = given or trained_size(model, state, where)
    assumed = [] if given or size == model.image_size else [
        f"an image size of {size[0]} x {size[1]}, for positions in a square"]
    model = model.with_image_size(size)
    own = model.preprocess
    if model.timm_name:
        own = build.timm_preprocess(build.timm_weights(model.timm_name), size)
    # A model that is named has its own preprocessing.
    steps = said if named else said.over(recorded.usual)
    prepared = prepare(own, steps, size, recorded.image_size)
    model, missing = dataclasses.replace(model, preprocess=prepared), said.missing
    images = f"{_list(missing)} ({_describe(prepared, missing)})" if missing else ""
    if not named and not recorded.config:
        also = f"; {_list(similar)} fit as well" if similar else ""
        assumed.insert(0, ", ".join(filter(None, (f"{model.name} by its tensors with {_features(model)}",
                                                  _describe(prepared, missing)))) + also)
    elif not named and missing:
        assumed.insert(0, f"{images} of the published {model.name} models of transformers")
    elif load.model:
        assumed += _assumed_tag(load.model, said)
        assumed += _assumed_pooling(model, state, load)
    elif missing and not recorded.complete and not is_timm(where):
        assumed.insert(0, f"{images} of {model.name}, which {recorded.source} names")
    return Identity(model, tuple(assumed))


def _count_classes(state: Mapping[str, Tensor]) -> int | None:
    """The outputs of the head [classes, C] or of CLIP's projection [C, E] in its place; None without either."""
    for name, axis in (("head.weight", 0), ("visual.proj", 1)):
        if name in state and state[name].ndim == 2:
            return int(state[name].shape[axis])
    return None


def check_channels(state: Mapping[str, Tensor], where: str) -> None:
    """Raises CheckpointError if the patch embedding takes images of other than 1 or 3 channels."""
    # In LV-ViT, convolutions come before it.
    weight = None if "patch_embed.conv1.weight" in state else state.get("patch_embed.proj.weight")
    if weight is not None and weight.ndim == 4 and weight.shape[1] not in (1, 3):
        raise CheckpointError(f"{where} takes images of {weight.shape[1]} channels, and images are read as RGB or grey "
                              "here; train a model with in_chans=3 or in_chans=1.")


def _check_depth(depth: int | None, state: Mapping[str, Tensor], where: str, name: str) -> None:
    """Raises CheckpointError if the file has another number of blocks than the model, before that many are built."""
    found = count_blocks(state)
    if depth is not None and found not in (0, depth):
        raise CheckpointError(f"{where} has {found} blocks, and {name} has {depth}; it is of another model.")


def _of_model(recorded: Recorded, name: str | None, where: str) -> Recorded:
    """`recorded`, or nothing of it if it is about another architecture than the one that --model names."""
    if name is None or recorded.model is None or _architecture(name) == _architecture(recorded.model):
        return recorded
    tell(f"{where}: {recorded.source} names {recorded.model}; it is not used, because --model names {name}.")
    return Recorded(resampling=recorded.resampling)


def _architecture(name: str) -> str:
    """Without the tag of timm's weights, and timm's name of a model of the zoo."""
    return zoo.PRETRAINED.get(name, name).removeprefix(TIMM_PREFIX).partition(".")[0]


def _named(name: str, state: Mapping[str, Tensor], recorded: Recorded, where: str, load: LoadConfig) -> ModelConfig:
    """The model of that name, with the arguments that are recorded or given."""
    averages = "fc_norm.weight" in state and "norm.weight" not in state
    try:
        own = build.check_options(recorded.options)
        # timm records its default pooling, too; the names of the norms say more.
        options = own | ({"global_pool": "avg"} if averages else {}) | build.check_options(load.model_args)
        _check_depth(options.get("depth"), state, where, name)
        return build.resolve(name, as_arguments(options))
    except ConfigError as error:
        if load.model or load.model_args or is_timm(where):
            raise
        raise CheckpointError(f"{where} is a {name} by {recorded.source}, which cannot be used: {error}") from error


def prepare(own: Preprocess, steps: Steps, size: tuple[int, int], at: tuple[int, int] | None) -> Preprocess:
    """The preprocessing for images of (height, width) `size`: `steps` where these say something, else `own`.

    `at`: the image size for which the `steps` were recorded; their short side is scaled from it. Where `size` is not
    square, the long side keeps the same fraction.

    Raises:
        ConfigError: images would be resized to less than the model's input.
    """
    squashes = own.squash or own.short_side is None if steps.squash is None else steps.squash
    short, squash, long = own.short_side, own.squash, own.long_side
    if steps.crop or steps.short_side:
        fraction = steps.crop or min(at or size) / (steps.short_side or 1)
        rounded = math.floor if steps.crop else round
        short, long = (rounded(side / fraction) for side in sorted(size))
        if short < min(size):
            raise ConfigError(f"Images would be resized to {short} pixels, below the {min(size)} of the model; give "
                              "--crop, for example --crop 0.875.")
        squash = squashes
        if squash and [short, long] == sorted(size):
            short, squash, long = None, False, None
    return Preprocess(short, _three(steps.mean) or own.mean, _three(steps.std) or own.std,
                      steps.interpolation or own.interpolation, squash, long)


def _three(values: tuple[float, ...] | None) -> tuple[float, float, float] | None:
    """One value, as models of one channel record it, counts for all."""
    if values is None:
        return None
    if len(values) not in (1, 3):
        raise ConfigError(f"A mean or deviation of {len(values)} channels is recorded, and images are read as RGB or "
                          "grey here; give --mean and --std.")
    red, green, blue = values * 3 if len(values) == 1 else values
    return red, green, blue


def _assumed_pooling(model: ModelConfig, state: Mapping[str, Tensor], load: LoadConfig) -> list[str]:
    """Average pooling, where a norm after the pooling shows that the model pools patches, but not how."""
    given = dict(build.check_options(load.model_args)).get("global_pool")
    own = build.resolve(model.name) if model.timm_name else model
    seen = dict(model.options).get("global_pool") == "avg" and "fc_norm.weight" in state
    return ["average pooling, for a norm after it; avgmax and max have one, too"] if (
        seen and given is None and dict(own.options) != dict(model.options)) else []


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
    steps = f"mean {numbers_text(own['mean'])} and std {numbers_text(own['std'])}"
    return [f"{steps}, of the default weights of {name}; others of that model differ, such as {name}.{others}"]


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
           ) -> tuple[ModelConfig, list[str]]:
    """The known model that fits the tensors, and the names of others that differ from it in nothing that matters but
    the crop or the interpolation."""
    for name, rank in (("pos_embed", 3), ("head.weight", 2), ("blocks.0.attn.qkv.weight", 2)):
        if name not in state or state[name].ndim != rank:
            raise CheckpointError(f"{where} has no tensor {name!r} of {rank} dimensions, so it is not a ViT "
                                  "checkpoint; name its architecture with --model if it is a VisionTransformer of timm "
                                  "(others, such as Swin, are not supported).")
    # If none fits exactly, the closest is taken, so that the error names the tensor.
    found = _of_family(fitting_models(state) or fitting_models(state, CLOSE), state, recorded)
    if not found:
        width, depth = state["pos_embed"].shape[-1], count_blocks(state)
        raise CheckpointError(f"{where} has width {width} and depth {depth}, and no known model has its tensors; "
                              "name its architecture with --model timm:NAME (dyvit models lists the others), or put "
                              "its config.json beside it.")
    different: dict[object, list[ModelConfig]] = {}
    for model in found:
        model = build.with_options(model, load.model_args)
        key = said.mean or model.preprocess.mean, said.std or model.preprocess.std, _features(model)
        different.setdefault(key, []).append(model)
    if len(different) > 1:
        listed = "; ".join(f"{m.name} with {_describe(m.preprocess, ('mean', 'std'))}, {_features(m)}"
                           for [m, *_] in different.values())
        raise CheckpointError(f"{where} does not say which model it is, and its tensors fit several that differ in how "
                              f"they compute or prepare images: {listed}. Name yours with --model, or give --mean and "
                              "--std.")
    [[model, *similar]] = different.values()
    resized = said.crop or said.short_side
    return model, [other.name for other in similar
                   if not resized and other.preprocess.short_side != model.preprocess.short_side]


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
    numbers = [int(match.group(1)) for name in state if (match := re.match(r"blocks\.(\d{1,5})\.", name))]
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


def _describe(prepared: Preprocess, names: tuple[str, ...]) -> str:
    """Those of the steps, in words."""
    texts = {"mean": f"mean {numbers_text(prepared.mean)}", "std": f"std {numbers_text(prepared.std)}",
             "crop": prepared.resize, "interpolation": prepared.interpolation}
    return ", ".join(texts[name] for name in names)


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
