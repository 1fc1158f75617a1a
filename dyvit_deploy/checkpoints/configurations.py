"""Reads what a checkpoint says of its model: configurations beside it, and training arguments in it."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm

from ..artifacts.files import CONFIG, TIMM_PREFIX
from ..config import Arguments, as_arguments
from ..errors import CheckpointError, ConfigError
from .archive import plain, read_json
from .recorded import Recorded, Steps, names_of, numbers, text_of
from .transformers import read_config

# Keys of a file under which trainers keep their arguments, and the names that the architecture has there.
ARGUMENTS = ("args", "hyper_parameters", "config", "cfg", "hparams")
ARCHITECTURES = ("model", "arch", "model_name", "architecture", "backbone")
# Names of models in training scripts, and what they are here. MAE's scripts fine-tune timm's ViT.
SCRIPTS = {
    "deit-s": "deit-s", "deit-b": "deit-b", "deit-256": "deit-256", "lvvit-s": "lvvit-s", "lvvit-m": "lvvit-m",
    "vit_base_patch16": "timm:vit_base_patch16_224.mae", "vit_large_patch16": "timm:vit_large_patch16_224.mae",
    "vit_huge_patch14": "timm:vit_huge_patch14_224.mae",
}


def read_recorded(path: Path, content: Mapping[str, Any]) -> Recorded:
    """What the file `path` and the configurations beside it say; empty if nothing does.

    Raises:
        CheckpointError: a configuration is damaged, or of a model that is not supported.
    """
    folder = path if path.is_dir() else path.parent
    if (folder / CONFIG).is_file():
        values = read_json(folder / CONFIG)
        if isinstance(values, Mapping):
            try:
                if "architecture" in values:
                    return _of_timm(values)
                if "model_type" in values or "architectures" in values:
                    return read_config(values, folder)
            except (TypeError, ValueError, KeyError, AttributeError, ConfigError) as error:
                raise CheckpointError(f"{folder / CONFIG} cannot be used ({error}); correct it, or name the model with "
                                      "--model after moving it away.") from error
    return _of_script(content)


def _of_timm(values: Mapping[str, Any]) -> Recorded:
    """timm's config.json, as `push_to_hf_hub` and `save_for_hf` write it."""
    weights = values.get("pretrained_cfg") or {}
    size = weights.get("input_size")
    names = values.get("label_names") or weights.get("label_names")
    crop, mode = weights.get("crop_pct"), weights.get("crop_mode")
    return Recorded(
        CONFIG, TIMM_PREFIX + str(values["architecture"]), None, _arguments(values.get("model_args") or {}),
        (int(size[1]), int(size[2])) if size else None,
        Steps(numbers(weights.get("mean")), numbers(weights.get("std")), None if crop is None else float(crop), None,
              None if mode is None and crop is None else mode == "squash", text_of(weights.get("interpolation"))),
        names_of(names))


def _of_script(content: Mapping[str, Any]) -> Recorded:
    """The arguments that training scripts of timm, DeiT, DynamicViT and MAE, and Lightning, save in the file."""
    for key in ARGUMENTS:
        values = plain(content.get(key))
        if isinstance(values, dict) and (model := _architecture(values)):
            return Recorded(f"its {key}", model, None, _script_options(values), _script_size(values),
                            _script_steps(values))
    if model := _architecture(content):
        return Recorded("its arch", model)
    # The name that the training of DeiT and DynamicViT gives the moving average.
    return Recorded("its model_ema", family="deit") if "model_ema" in content else Recorded()


def _architecture(values: Mapping[str, Any]) -> str | None:
    """The first known name of a model among these arguments."""
    names = [values[word] for word in ARCHITECTURES if isinstance(values.get(word), str)]
    return next((model for model in map(_known, names) if model), None)


def _known(name: str) -> str | None:
    """The name here of a model of a training script, None if it is not known."""
    name = name.removeprefix(TIMM_PREFIX).removeprefix("hf-hub:timm/").removeprefix("hf_hub:timm/")
    if name in SCRIPTS:
        return SCRIPTS[name]
    return TIMM_PREFIX + name if timm.is_model(name.partition(".")[0]) else None


def _script_options(values: Mapping[str, Any]) -> Arguments:
    options = dict(values.get("model_kwargs") or {}) if isinstance(values.get("model_kwargs"), Mapping) else {}
    if isinstance(values.get("gp"), str):
        options["global_pool"] = values["gp"]
    return _arguments(options)


def _script_size(values: Mapping[str, Any]) -> tuple[int, int] | None:
    size = values.get("input_size", values.get("img_size"))
    if isinstance(size, (list, tuple)) and len(size) == 3:
        return int(size[1]), int(size[2])
    return (size, size) if isinstance(size, int) and size > 0 else None


def _script_steps(values: Mapping[str, Any]) -> Steps:
    mean, std = numbers(values.get("mean")), numbers(values.get("std"))
    # DynamicViT's and ConvNeXt's scripts: otherwise the constants of Inception.
    if values.get("imagenet_default_mean_and_std") is False:
        mean = std = (0.5, 0.5, 0.5)
    crop = values.get("crop_pct")
    return Steps(mean, std, float(crop) if crop else None, None, {"squash": True, "center": False}.get(
        str(values.get("crop_mode"))), text_of(values.get("interpolation")))


def _arguments(values: Mapping[str, Any]) -> Arguments:
    """timm's keyword arguments, without those that are read elsewhere."""
    return as_arguments({key: value for key, value in values.items() if key not in ("img_size", "num_classes")})
