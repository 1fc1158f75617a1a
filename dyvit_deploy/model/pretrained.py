"""timm's pretrained weights, downloaded once and then read from its cache."""
from __future__ import annotations

import hashlib
from collections.abc import Mapping

import huggingface_hub
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor

from ..artifacts.files import TIMM_PREFIX
from ..config import ModelConfig
from ..errors import CheckpointError, foreign_errors, reason
from . import build
from .zoo import PRETRAINED

WEIGHTS_FILE = "model.safetensors"
# Seconds to wait for the Hub's first answer; the download itself has no limit.
TIMEOUT = 10.0


def read_pretrained(name: str) -> dict[str, Tensor]:
    """The weights of `timm:NAME`, under timm's names.

    Raises:
        ConfigError: timm has no such model, or no such weights.
        CheckpointError: timm has no pretrained weights of the model, or they cannot be downloaded.
    """
    with torch.device("meta"):
        pretrained = build.create_timm(name.removeprefix(TIMM_PREFIX)).pretrained_cfg
    if not any(pretrained.get(key) for key in ("hf_hub_id", "url", "file")):
        raise CheckpointError(f"timm has no pretrained weights of {name}; choose another model or tag, or pass a "
                              f"checkpoint FILE --model {name}.")
    def translated(error: Exception) -> CheckpointError:
        return CheckpointError(f"The weights of {name} could not be downloaded ({reason(error)}); download them on a "
                               f"machine with a network and name the FILE instead: dyvit export FILE --model {name}, "
                               "dyvit train --backbone FILE.")

    # Each network library raises errors of its own.
    with foreign_errors(translated):
        _require_reachable(pretrained.get("hf_hub_id"))
        model = timm.create_model(name.removeprefix(TIMM_PREFIX), pretrained=True)
    state: dict[str, Tensor] = model.state_dict()
    return state


def _require_reachable(repository: str | None) -> None:
    """Raises within TIMEOUT if weights are neither cached nor available; the Hub client's own retries take a minute."""
    if not repository or isinstance(huggingface_hub.try_to_load_from_cache(repository, WEIGHTS_FILE), str):
        return
    url = huggingface_hub.hf_hub_url(repository, WEIGHTS_FILE)
    try:
        huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT)
    # Older weights have another file name.
    except EntryNotFoundError:
        return


def pretrained_name(config: ModelConfig) -> str:
    """`timm:NAME` of the pretrained weights of this architecture.

    Raises:
        CheckpointError: timm has no pretrained weights of it.
    """
    name = config.timm_name or PRETRAINED.get(config.name)
    if name is None:
        raise CheckpointError(f"timm has no pretrained weights of {config.name}; pass --backbone FILE, or train "
                              "without it.")
    return TIMM_PREFIX + name


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Hex digest of names, shapes, types and values, for weights that are not stored in one file."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
