"""Reads published checkpoints and our own, and writes our own.

Our format is safetensors; the metadata in its header holds the facts as JSON. Published `.pth`
and `.pth.tar` files are unpickled with only tensors and argparse.Namespace allowed, so no code
in them can run.
"""
from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from ..artifacts.facts import METADATA_KEY, ArtifactFacts
from ..artifacts.files import atomic_write, is_timm, require_file, require_source, sha256
from ..config import LEARNED, KeepRequest, LoadConfig, ModelConfig, PruneConfig
from ..errors import CheckpointError
from . import vit, zoo
from .dynamicvit import DynamicViT
from .pretrained import pretrained_name, read_pretrained, tensors_sha256

PREDICTOR = "score_predictor."
HEADS = ("head.", "head_dist.", "aux_head.")
# Prefix of the tensors that only resuming a training run needs.
RESUME = "resume."


@dataclass(frozen=True)
class RawCheckpoint:
    """The tensors of a file under their published names, and the facts that the file records.

    `path` may be `timm:NAME`. `weights` is the set that was read, "model" or "ema"; `arguments` are those of the
    published training script. It is accepted wherever the path of a checkpoint is, so that a command reads the file
    once.
    """

    path: Path
    state: dict[str, Tensor]
    facts: ArtifactFacts | None
    weights: str
    arguments: dict[str, Any]

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @functools.cached_property
    def _sha256(self) -> str:
        return tensors_sha256(self.state) if is_timm(self.path) else sha256(self.path)

    def origin(self) -> dict[str, Any]:
        """The `parent` of the facts. Its sha256 is that of the file or, for downloaded weights, of the tensors."""
        return {"file": self.path.name, "sha256": self._sha256, "weights": self.weights}


def read_checkpoint(path: str | Path, weights: str = "auto") -> RawCheckpoint:
    """Reads the tensors of `path` without running any code from it.

    Raises:
        CheckpointError: the file is damaged, is not a checkpoint, contains more than plain data, or cannot be
            downloaded.
        ArtifactError: the file is missing or empty.
    """
    path = require_source(path)
    if is_timm(path):
        if weights == "ema":
            raise CheckpointError(f"{path} has one set of weights; leave out --weights ema.")
        return RawCheckpoint(path, read_pretrained(str(path)), None, "model", {})
    if path.suffix == ".onnx":
        raise CheckpointError(f"{path} is an ONNX file; name the checkpoint that it was exported from.")
    if path.suffix.lower() == ".plan":
        raise CheckpointError(f"{path} is an engine plan; name the checkpoint that it was exported from.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, weights)
    saved = _unpickle(path)
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"{path} holds a {type(saved).__name__}, not a dictionary of tensors; "
                              "save the model's state_dict().")
    state, taken = _choose_weights(path, saved, weights)
    arguments = saved.get("args")
    return RawCheckpoint(path, state, None, taken, vars(arguments) if isinstance(arguments, argparse.Namespace) else {})


def _read_safetensors(path: Path, weights: str) -> RawCheckpoint:
    if weights == "ema":
        raise CheckpointError(f"{path} holds one set of weights; leave out --weights ema.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys() if not name.startswith(RESUME)}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file ({error}); make or copy it again.") from error
    text = metadata.get(METADATA_KEY)
    facts = ArtifactFacts.from_json(text, str(path)) if text else None
    return RawCheckpoint(path, state, facts, "model", {})


def _unpickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"(?:GLOBAL|global|class)\S* ([A-Za-z_]\w*\.[\w.]+)", str(error))
        if code:
            raise CheckpointError(f"{path} contains code, {code.group(1)}, which a checkpoint does not need; "
                                  "it was not run. Save the tensors alone: {'model': model.state_dict()}.") from error
        raise CheckpointError(f"{path} is not a checkpoint that PyTorch can read; "
                              "it is damaged or of another kind, make or copy it again.") from error
    # A damaged file can raise any error.
    except Exception as error:
        raise CheckpointError(f"{path} is not a checkpoint that PyTorch can read; "
                              "it is damaged or of another kind, make or copy it again.") from error


def _choose_weights(path: Path, saved: Mapping[str, Any], weights: str) -> tuple[dict[str, Tensor], str]:
    has_ema = isinstance(saved.get("model_ema"), Mapping)
    if weights == "ema" and not has_ema:
        raise CheckpointError(f"{path} holds no EMA weights; leave out --weights ema.")
    # A file saved at the best EMA epoch keeps the raw weights of that epoch under "model".
    if weights == "ema" or (weights == "auto" and has_ema and saved.get("epoch") == "best-ema"):
        taken, state = "ema", saved["model_ema"]
    else:
        taken = "model"
        state = next((saved[key] for key in ("model", "state_dict") if isinstance(saved.get(key), Mapping)), saved)
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors or (len(tensors) < len(state) and state is saved):
        raise CheckpointError(f"{path} holds no state dict; expected tensors under 'model' or at the top level.")
    # DataParallel adds the prefix.
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors, taken


def infer_model(state: Mapping[str, Tensor], where: str, image_size: tuple[int, int] | None = None) -> ModelConfig:
    """Infers the architecture from the published names and shapes of the tensors.

    Args:
        state: tensors under their published names.
        where: the file, for messages.
        image_size: (height, width) in pixels, needed if the model was trained on images that are not square.

    Raises:
        CheckpointError: no known model has this width, depth and stem.
    """
    for name, rank in (("pos_embed", 3), ("head.weight", 2), ("blocks.0.attn.qkv.weight", 2)):
        if name not in state or state[name].ndim != rank:
            raise CheckpointError(f"{where} has no tensor {name!r} of {rank} dimensions, so it is not a ViT "
                                  "checkpoint; name its architecture with --model if it is one of timm's.")
    width = state["pos_embed"].shape[-1]
    depth = 1 + max(int(m.group(1)) for name in state if (m := re.match(r"blocks\.(\d+)\.", name)))
    builder = "lvvit" if "patch_embed.conv1.weight" in state else "vit"
    stem = "conv" if "patch_embed.layers.0.weight" in state else "linear"
    matches = [c for c in zoo.MODELS.values() if (c.builder, c.width, c.depth, c.stem) == (builder, width, depth, stem)]
    if not matches:
        raise CheckpointError(f"{where} has width {width} and depth {depth}, which no known model has; "
                              "name its architecture with --model timm:NAME (dyvit models lists the others).")
    patches = state["pos_embed"].shape[1] - 1
    config = next((c for c in matches if c.patches == patches), matches[0])
    side = math.isqrt(max(patches, 0))
    if side and side * side == patches:
        config = config.with_image_size((side * config.patch_size,) * 2)
    elif image_size and config.with_image_size(image_size).patches == patches:
        config = config.with_image_size(image_size)
    else:
        raise CheckpointError(f"{where} has {patches} patch positions, which do not form a square grid; "
                              "give the image size it was trained at with --image-size HEIGHTxWIDTH.")
    return dataclasses.replace(config, classes=state["head.weight"].shape[0])


def open_checkpoint(source: str | os.PathLike[str], weights: str = "auto") -> RawCheckpoint:
    """`source` where it has been read already, else see `read_checkpoint`."""
    return source if isinstance(source, RawCheckpoint) else read_checkpoint(Path(source), weights)


def load_model(path: str | os.PathLike[str], load: LoadConfig = LoadConfig(),
               like: ArtifactFacts | None = None) -> tuple[DynamicViT, ArtifactFacts]:
    """Loads a checkpoint as a model in evaluation mode.

    Args:
        path: our `.safetensors`, a published `.pth` / `.pth.tar`, `timm:NAME` for timm's pretrained weights, or a
            `RawCheckpoint`, whose weights are those that it was read with.
        load: overrides of what the checkpoint records.
        like: use the model, pruning and weights of this artifact instead, to compare the checkpoint with it.

    Returns:
        the model, and its facts; their `parent` records the file, its sha256 and the set of weights.

    Raises:
        CheckpointError: tensors are missing, unexpected or of the wrong shape.
        ConfigError: the model does not support an override.
    """
    weights = load.weights
    if like and weights == "auto" and like.parent and Path(path).suffix != ".safetensors":
        weights = like.parent.get("weights", "auto")
    raw = open_checkpoint(path, weights)
    if like:
        _check_alike(raw, like)
    facts = like or _resolve(raw, load)
    model = DynamicViT(facts.model, facts.prune)
    _load_state(model, raw, resample=load.image_size is not None or like is not None)
    return model.eval(), dataclasses.replace(facts, parent=raw.origin())


def load_facts(path: str | os.PathLike[str], load: LoadConfig = LoadConfig()) -> ArtifactFacts:
    """The facts that `load_model` returns, without `parent`; does not build the model."""
    return _resolve(open_checkpoint(path, load.weights), load)


class Backbone(NamedTuple):
    """A dense model to start training from. `new_head`: its classes differ from the checkpoint's, so its head is
    random."""

    model: DynamicViT
    facts: ArtifactFacts
    new_head: bool


def load_backbone(source: str | Path, config: ModelConfig) -> Backbone:
    """Loads dense weights into the model `config`, which may have another image size and number of classes.

    Args:
        source: a checkpoint, `timm:NAME`, or "timm-pretrained" for timm's weights of this architecture.
        config: the model to load the weights into.

    Raises:
        CheckpointError: the weights are of another architecture, drop tokens, or are not available.
    """
    raw = read_checkpoint(pretrained_name(config) if source == zoo.TIMM_PRETRAINED else source)
    if count_predictors(raw.state) or (raw.facts and raw.facts.prune):
        raise CheckpointError(f"{raw.path} drops tokens, but a backbone is dense; pass the dense checkpoint that it "
                              "was trained from.")
    facts = raw.facts or ArtifactFacts(config)
    if facts.model.name != config.name:
        raise CheckpointError(f"{raw.path} is a {facts.model.name}, not a {config.name}; name another backbone or "
                              "model.")
    model = DynamicViT(config, None)
    head = raw.state.get("head.weight")
    new_head = head is None or len(head) != config.classes
    if new_head:
        fresh = {published_name(name): tensor for name, tensor in model.state_dict().items()}
        state = {name: tensor for name, tensor in raw.state.items() if not name.startswith(HEADS)}
        state |= {name: tensor for name, tensor in fresh.items() if name.startswith(HEADS)}
    _load_state(model, dataclasses.replace(raw, state=state) if new_head else raw, resample=True)
    names = None if new_head else facts.class_names
    return Backbone(model.eval(), dataclasses.replace(facts, model=config, class_names=names, parent=raw.origin()),
                    new_head)


def _check_alike(raw: RawCheckpoint, like: ArtifactFacts) -> None:
    if raw.facts and raw.facts.model.name != like.model.name:
        raise CheckpointError(f"{raw.path} is a {raw.facts.model.name}, the other artifact is a {like.model.name}; "
                              "compare artifacts of the same model.")
    if like.prune is None and count_predictors(raw.state):
        raise CheckpointError(f"{raw.path} drops tokens, the other artifact is a dense backbone; "
                              "compare it with the dense checkpoint that it was exported from.")


def _resolve_model(raw: RawCheckpoint, load: LoadConfig) -> ModelConfig:
    where = str(raw.path)
    known = raw.facts.model.name if raw.facts else where if is_timm(where) else None
    if known and load.model not in (None, known):
        raise CheckpointError(f"{where} is a {known}, not a {load.model}; name another file or model.")
    if raw.facts:
        model = raw.facts.model
    elif name := load.model or known:
        model = vit.resolve(name)
        if "head.weight" in raw.state:
            model = dataclasses.replace(model, classes=raw.state["head.weight"].shape[0])
    else:
        model = infer_model(raw.state, where, load.image_size)
    return model.with_image_size(load.image_size) if load.image_size else model


def _resolve(raw: RawCheckpoint, load: LoadConfig) -> ArtifactFacts:
    where, model = str(raw.path), _resolve_model(raw, load)
    predictors = count_predictors(raw.state)
    recorded = raw.facts.prune if raw.facts else None if load.keep.asks else recorded_prune(raw, model.depth)
    prune = load.keep.resolve(model.depth, recorded)
    trained = recorded.selector if recorded else "prediction" if predictors else None
    base = raw.facts or ArtifactFacts(model)
    if trained is None:
        if prune is None or prune.is_dense(model.patches):
            return dataclasses.replace(base, model=model, prune=None)
        if prune.selector in LEARNED:
            raise CheckpointError(f"{where} is a dense backbone without predictors, so it cannot drop tokens; pass "
                                  "--keep-ratio 1.0, let attention choose with --selector attention (no training, "
                                  "less accurate), or train predictors first: dyvit train "
                                  f"--model {load.model or model.name} --data YOUR_DATA --backbone {where} -o run/")
        # The recorded training was of the dense model.
        base = dataclasses.replace(base, training=None)
    elif prune is None:
        raise CheckpointError(f"{where} does not record its keep ratio; pass the one it was trained for, "
                              "e.g. --keep-ratio 0.7.")
    elif prune.selector != trained:
        raise CheckpointError(f"{where} was trained to drop tokens by {trained!r}, not by {prune.selector!r}; leave "
                              "out --selector, or name a dense checkpoint.")
    elif predictors not in (0, len(prune.stages)):
        raise CheckpointError(f"{where} has {predictors} predictors but {len(prune.stages)} stages were requested, "
                              f"{list(prune.stages)}; give --stages with {predictors} blocks.")
    if load.keep.align:
        prune = prune.aligned(model.patches, vit.prefix_tokens(model) + prune.fuse, load.keep.align)
    return dataclasses.replace(base, model=model, prune=prune)


def count_predictors(state: Mapping[str, Tensor]) -> int:
    """How many stages have a predictor in `state`."""
    return len({name.split(".")[1] for name in state if name.startswith(PREDICTOR)})


def recorded_prune(raw: RawCheckpoint, depth: int | None = None) -> PruneConfig | None:
    """The schedule that a published training run recorded (`base_rate`), or None."""
    rate = raw.arguments.get("base_rate")
    if not isinstance(rate, float) or not count_predictors(raw.state):
        return None
    return KeepRequest(ratio=rate).resolve(depth or infer_model(raw.state, str(raw.path)).depth, None)


def published_name(name: str) -> str:
    """The name of a tensor in published checkpoints, where the backbone has no prefix."""
    return name.removeprefix("backbone.")


def _load_state(model: DynamicViT, raw: RawCheckpoint, resample: bool) -> None:
    """Copies the tensors of `raw` into `model`; `resample` interpolates the positions to its grid.

    Raises:
        CheckpointError: a name or shape does not match.
    """
    expected = {published_name(name): tensor for name, tensor in model.state_dict().items()}
    state = dict(raw.state)
    # A dense file has no ranking.
    if model.prune and model.prune.selector == "random":
        state = {name: tensor for name, tensor in expected.items() if name.startswith(PREDICTOR)} | state
    if resample and "pos_embed" in expected and "pos_embed" in state:
        state["pos_embed"] = _resample(model, state["pos_embed"], raw.facts.model.grid if raw.facts else None)
    for name in expected:
        if name not in state:
            why = ("it has no classifier, so train one on it with --backbone" if name == "head.weight" else
                   "it is incomplete or of another model")
            raise CheckpointError(f"{raw.path} lacks the tensor {name!r} of {model.config.name}; {why}.")
    for name, tensor in state.items():
        if name not in expected:
            raise CheckpointError(f"{raw.path} has the tensor {name!r}, which {model.config.name} does not; "
                                  "it is of another model.")
        if tensor.shape != expected[name].shape:
            hint = ("" if name != "pos_embed" and not name.startswith(PREDICTOR) else
                    " Give the size it was trained at with --image-size.")
            raise CheckpointError(f"{raw.path}: tensor {name!r} has shape {list(tensor.shape)}, "
                                  f"{model.config.name} needs {list(expected[name].shape)}.{hint}")
    model.load_state_dict({name: state[published_name(name)] for name in model.state_dict().keys()})


def _resample(model: DynamicViT, stored: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """Interpolates a positional embedding [1, P + N, C] from `grid` (None: a square one) to the model's grid."""
    prefix = 0 if model.backbone.no_embed_class else model.prefix
    patches = stored.shape[1] - prefix if stored.ndim == 3 else 0
    side = math.isqrt(max(patches, 0))
    # Without a record, positions that are not square are taken to have the model's grid.
    if grid is None:
        grid = (side, side) if side * side == patches else model.config.grid
    # The caller checks the shape and names a mismatch.
    if grid == model.config.grid or math.prod(grid) != patches:
        return stored
    resampled: Tensor = resample_abs_pos_embed(stored, new_size=list(model.config.grid), old_size=list(grid),
                                               num_prefix_tokens=prefix)
    return resampled


def save_checkpoint(path: str | Path, model: DynamicViT, facts: ArtifactFacts,
                    resume: Mapping[str, Tensor] | None = None) -> None:
    """Writes our format, atomically. `resume`: further tensors, which only training reads."""
    state = {published_name(name): tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    state |= {RESUME + name: tensor.detach().cpu().contiguous() for name, tensor in (resume or {}).items()}
    with atomic_write(path) as temporary:
        try:
            safetensors.torch.save_file(state, temporary, metadata={METADATA_KEY: facts.to_json()})
        except safetensors.SafetensorError as error:
            raise OSError(str(error)) from error


def read_resume(path: str | Path) -> dict[str, Tensor]:
    """The tensors that were passed to `save_checkpoint` as `resume`."""
    with safetensors.safe_open(require_file(path), framework="pt") as file:
        return {name.removeprefix(RESUME): file.get_tensor(name) for name in file.keys() if name.startswith(RESUME)}
