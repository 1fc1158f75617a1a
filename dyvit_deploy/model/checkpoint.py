"""Opens checkpoints as models, and writes our own format.

Our format is safetensors; the metadata in its header holds the facts as JSON. Files of other training code are read by
`checkpoints`, which runs no code in them, and told apart by `identify`.
"""
from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..artifacts.facts import METADATA_KEY, ArtifactFacts
from ..artifacts.files import atomic_write, is_timm, require_file, require_source, sha256
from ..checkpoints.archive import plain, read_archive
from ..checkpoints.configurations import read_recorded
from ..checkpoints.names import LAYOUTS, to_timm
from ..checkpoints.recorded import Recorded, Steps
from ..checkpoints.weights import choose_weights
from ..config import LEARNED, KeepRequest, LoadConfig, ModelConfig, PruneConfig
from ..errors import CheckpointError, ConfigError
from ..settings.fields import numbers_text
from ..settings.notes import assume, tell
from . import build, zoo
from .dynamicvit import DynamicViT
from .identify import PREDICTOR, Identity, identify, prepare
from .pretrained import pretrained_name, read_pretrained, tensors_sha256
from .state import check_tensors, fit_state, published_name

HEADS = ("head.", "head_dist.", "aux_head.")
# Prefix of the tensors that only resuming a training run needs.
RESUME = "resume."


@dataclass(frozen=True)
class RawCheckpoint:
    """The tensors of a file under their published names, and the facts that the file records.

    `path` may be `timm:NAME`, or a folder. `weights` is the set that was read, "model" or "ema"; `recorded` is what the
    file or a configuration beside it says of the model, and `arguments` are those of the published training script.
    `beside` names tensors that may be left out, because they are not in the wrapped model. It is accepted wherever the
    path of a checkpoint is, so that a command reads the file once.
    """

    path: Path
    state: dict[str, Tensor]
    facts: ArtifactFacts | None
    weights: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    recorded: Recorded = Recorded()
    files: tuple[Path, ...] = ()
    beside: frozenset[str] = frozenset()

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @functools.cached_property
    def _sha256(self) -> str:
        if is_timm(self.path):
            return tensors_sha256(self.state)
        if len(self.files) < 2:
            return sha256(self.files[0])
        return hashlib.sha256(" ".join(map(sha256, self.files)).encode()).hexdigest()

    def origin(self) -> dict[str, Any]:
        """The `parent` of the facts. Its sha256 is that of the file, of the files of a sharded checkpoint or, for
        downloaded weights, of the tensors."""
        return {"file": self.path.name, "sha256": self._sha256, "weights": self.weights}


def read_checkpoint(path: str | Path, weights: str = "auto", strict: bool = True) -> RawCheckpoint:
    """Reads the tensors of `path` without running any code from it.

    Args:
        path: a file of PyTorch or safetensors in any of the wrappings that training leaves, a folder of timm or
            transformers, the index of a sharded one, or `timm:NAME`.
        weights: "auto", "model" or "ema".
        strict: refuse a file without such weights; otherwise take those that it has.

    Raises:
        CheckpointError: the file is damaged, is not a checkpoint, contains more than plain data, or cannot be
            downloaded.
        ArtifactError: the file is missing or empty.
    """
    path = require_source(path)
    if is_timm(path):
        if weights == "ema" and strict:
            raise CheckpointError(f"{path} has one set of weights; leave out --weights ema.")
        return RawCheckpoint(path, read_pretrained(str(path)), None, "model")
    archive = read_archive(path)
    choice = choose_weights(archive.content, path, weights, strict)
    taken = choice.taken
    text = archive.metadata.get(METADATA_KEY)
    facts = ArtifactFacts.from_json(text, str(path)) if text else None
    if choice.assumed:
        assume(choice.assumed)
    if choice.told:
        tell(choice.told)
    if taken.layout in LAYOUTS:
        tell(f"{path}: the tensors have the names of {taken.layout}, and were renamed.")
    elif taken.prefix:
        tell(f"{path}: the prefix {taken.prefix!r} was removed from the names of the tensors.")
    state = {name: tensor for name, tensor in taken.state.items() if not name.startswith(RESUME)}
    check_tensors(state, path)
    arguments = plain(archive.content.get("args"))
    return RawCheckpoint(path, to_timm(state, taken.layout, path), facts, taken.kind,
                         arguments if isinstance(arguments, dict) else {},
                         Recorded() if facts else read_recorded(path, archive.content), archive.files, taken.beside)


def open_checkpoint(source: str | os.PathLike[str], weights: str = "auto", strict: bool = True) -> RawCheckpoint:
    """`source` where it has been read already, else see `read_checkpoint`."""
    return source if isinstance(source, RawCheckpoint) else read_checkpoint(Path(source), weights, strict)


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
    if like and weights == "auto" and like.parent:
        weights = like.parent.get("weights", "auto")
    raw = open_checkpoint(path, weights, strict=like is None or load.weights != "auto")
    if like:
        _check_alike(raw, like)
    facts = like or _resolve(raw, load)
    if like:
        _tell_assumed(raw, facts)
    # Without memory: sizes that a file claims are compared with its tensors before anything of that size is made.
    with torch.device("meta"):
        model = DynamicViT(facts.model, facts.prune)
    state, adapted = _fitting_state(model, raw)
    model = _materialised(model)
    _copy_state(model, state)
    return model.eval(), dataclasses.replace(facts, parent=raw.origin(), adapted=adapted)


def _tell_assumed(raw: RawCheckpoint, facts: ArtifactFacts) -> None:
    for statement in facts.assumed:
        assume(f"Assumed, because {raw.path} does not record it: {statement}. Override it with --model, --model-args, "
               "--mean, --std, --crop or --interpolation.")


def _materialised(model: DynamicViT) -> DynamicViT:
    """A model in memory in place of one on the meta device; its tensors have any values, which saves their random
    initialisation, seconds for a DeiT-S."""
    named = model.state_dict().keys()
    ranked = model.prune is not None and model.prune.selector == "random"
    # A file need not have what is not a weight.
    if ranked or any(name not in named for name, _ in model.named_buffers()):
        return DynamicViT(model.config, model.prune)
    made: DynamicViT = model.to_empty(device="cpu")
    return made


def identified_facts(raw: RawCheckpoint, load: LoadConfig = LoadConfig()) -> ArtifactFacts:
    """The model of a checkpoint and the schedule that it records; of `load`, the schedule is not used.

    Raises:
        CheckpointError, ConfigError: its model is unknown.
    """
    identity = _identify(raw, load)
    base = raw.facts or ArtifactFacts(identity.model, recorded_prune(raw, identity.model.depth),
                                      class_names=_class_names(raw, identity.model))
    return dataclasses.replace(base, model=identity.model, assumed=identity.assumed)


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
    facts = raw.facts or ArtifactFacts(config, class_names=None if raw.recorded.problem else _class_names(
        raw, dataclasses.replace(config, classes=len(raw.state.get("head.weight", ())))))
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
    said = raw.recorded.steps
    if (said.mean and said.mean != config.preprocess.mean) or (said.std and said.std != config.preprocess.std):
        recorded = f"mean {numbers_text(said.mean or ())} and std {numbers_text(said.std or ())}"
        assume(f"{raw.path} records {recorded}; training continues with {config.preprocess.describe()} of "
               f"{config.name}. Name a --model with the same preprocessing to keep the recorded one.")
    _copy_state(model, _fitting_state(model, dataclasses.replace(raw, state=state) if new_head else raw)[0])
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


def _identify(raw: RawCheckpoint, load: LoadConfig) -> Identity:
    where = str(raw.path)
    known = raw.facts.model.name if raw.facts else where if is_timm(where) else None
    if known and load.model not in (None, known):
        raise CheckpointError(f"{where} is a {known}, not a {load.model}; name another file or model.")
    if not raw.facts:
        return identify(raw.state, raw.recorded, where, load)
    if load.model_args:
        raise ConfigError(f"{where} records its architecture; leave out --model-args.")
    model = raw.facts.model
    size = load.image_size or model.image_size
    model = model.with_image_size(size)
    asked = Steps(load.mean, load.std, load.crop, None, None, load.interpolation)
    if asked != Steps():
        model = dataclasses.replace(model, preprocess=prepare(model.preprocess, asked, size, None))
    return Identity(model, raw.facts.assumed)


def _resolve(raw: RawCheckpoint, load: LoadConfig) -> ArtifactFacts:
    where, identity = str(raw.path), _identify(raw, load)
    model = identity.model
    predictors = count_predictors(raw.state)
    recorded = raw.facts.prune if raw.facts else None if load.keep.asks else recorded_prune(raw, model.depth)
    prune = load.keep.resolve(model.depth, recorded)
    trained = recorded.selector if recorded else "prediction" if predictors else None
    base = dataclasses.replace(raw.facts or ArtifactFacts(model, class_names=_class_names(raw, model)),
                               assumed=identity.assumed)
    _tell_assumed(raw, base)
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
        prune = prune.aligned(model.patches, build.prefix_tokens(model) + prune.fuse, load.keep.align)
    return dataclasses.replace(base, model=model, prune=prune)


def count_predictors(state: Mapping[str, Tensor]) -> int:
    """How many stages have a predictor in `state`."""
    return len({name.split(".")[1] for name in state if name.startswith(PREDICTOR)})


def recorded_prune(raw: RawCheckpoint, depth: int) -> PruneConfig | None:
    """The schedule that a published training run recorded (`base_rate`), or None."""
    rate = raw.arguments.get("base_rate")
    if not isinstance(rate, float) or not count_predictors(raw.state):
        return None
    return KeepRequest(ratio=rate).resolve(depth, None)


def _class_names(raw: RawCheckpoint, model: ModelConfig) -> tuple[str, ...] | None:
    """The names in a configuration, if there is one for every class."""
    names = raw.recorded.class_names
    if names and len(names) != model.classes:
        tell(f"{raw.path}: {raw.recorded.source} has {len(names)} class names for {model.classes} classes; they were "
             "left out.")
        return None
    return names


def _fitting_state(model: DynamicViT, raw: RawCheckpoint) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of `raw` for `model`, and what had to be adapted, which is told; see `state.fit_state`.

    Raises:
        CheckpointError: a name or shape does not match.
    """
    recorded = raw.facts.model.grid if raw.facts else None
    state, adapted = fit_state(model, raw.state, str(raw.path), recorded, raw.recorded.resampling, raw.beside)
    for sentence in adapted:
        tell(f"{raw.path}: {sentence}.")
    return state, adapted


def _copy_state(model: DynamicViT, state: Mapping[str, Tensor]) -> None:
    """Copies `state` into `model`, which keeps its own tensors where there is none."""
    own = model.state_dict()
    model.load_state_dict({name: state.get(published_name(name), tensor) for name, tensor in own.items()})


def save_checkpoint(path: str | Path, model: DynamicViT, facts: ArtifactFacts,
                    resume: Mapping[str, Tensor] | None = None) -> None:
    """Writes our format, atomically. `resume`: further tensors, which only training reads."""
    state = {published_name(name): tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    state |= {RESUME + name: tensor.detach().cpu().contiguous() for name, tensor in (resume or {}).items()}
    with atomic_write(path) as temporary:
        try:
            safetensors.torch.save_file(state, temporary, metadata={METADATA_KEY: facts.to_json()})
        except safetensors.SafetensorError as error:
            # It has the number of the system's error in its text: "... (os error 28)".
            number = re.search(r"os error (\d+)", str(error))
            raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))) from error


def read_resume(path: str | Path) -> dict[str, Tensor]:
    """The tensors that were passed to `save_checkpoint` as `resume`."""
    with safetensors.safe_open(require_file(path), framework="pt") as file:
        return {name.removeprefix(RESUME): file.get_tensor(name) for name in file.keys() if name.startswith(RESUME)}
