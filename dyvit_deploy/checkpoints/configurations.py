"""Reads what a checkpoint says of its model: configurations beside it, and training arguments in it."""
from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm

from ..artifacts.files import CONFIG, TIMM_PREFIX
from ..errors import ConfigError
from ..settings.fields import Arguments, as_arguments
from ..settings.notes import tell
from ..settings.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from .archive import LONGEST, WEIGHT_FILES, plain, read_json
from .recorded import Recorded, Steps, names_of, numbers, text_of
from .transformers import read_config

# Keys of a file under which trainers keep their arguments, and the names that the architecture has there.
ARGUMENTS = ("args", "hyper_parameters", "config", "cfg", "hparams")
ARCHITECTURES = ("model", "arch", "model_name", "architecture", "backbone", "name")
# Arguments that are named like timm's.
NAMED_LIKE_TIMMS = ("num_heads", "global_pool", "embed_dim", "depth", "reg_tokens", "mlp_ratio", "qkv_bias",
                    "class_token")
# Names of models in training scripts, and what they are here. MAE's scripts fine-tune timm's ViT.
MAE = {"vit_base_patch16": "timm:vit_base_patch16_224.mae", "vit_large_patch16": "timm:vit_large_patch16_224.mae",
       "vit_huge_patch14": "timm:vit_huge_patch14_224.mae"}
SCRIPTS = {**MAE, **{name: name for name in ("deit-s", "deit-b", "deit-256", "lvvit-s", "lvvit-m")}}
BORDER = ("images of this model are padded with a border (crop_mode), which is not supported: train or evaluate it "
          "with crop_mode=center")


def read_recorded(path: Path, content: Mapping[str, Any]) -> Recorded:
    """What the file `path` and the configurations beside it say; empty if nothing does.

    Raises:
        CheckpointError: a configuration is no JSON.
    """
    try:
        found = _beside(path)
        script = _of_script(content)
    # A file may hold anything.
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError, ZeroDivisionError,
            ConfigError) as error:
        return Recorded("it", problem=f"What {path}, or {CONFIG} beside it, says of its model cannot be used "
                                      f"({str(error)[:LONGEST]}); correct it, or name the model with --model.")
    # Configurations belong to the file of weights of their folder; another file may be of another model.
    own = path.is_dir() or path.name in WEIGHT_FILES
    if found is None or (script.model and not own):
        return script
    if not own:
        tell(f"{path}: model and preprocessing are read from {CONFIG} beside it.")
    return found


def _beside(path: Path) -> Recorded | None:
    """What a configuration of timm or transformers in the folder of `path` says; None without one."""
    folder = path if path.is_dir() else path.parent
    values = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else None
    if not isinstance(values, Mapping):
        return None
    if "architecture" in values:
        return _of_timm(values)
    return read_config(values, folder) if "model_type" in values or "architectures" in values else None


def _of_timm(values: Mapping[str, Any]) -> Recorded:
    """timm's config.json, as `push_to_hf_hub` and `save_for_hf` write it."""
    weights = values.get("pretrained_cfg") or {}
    arguments = dict(values.get("model_args") or {})
    # The only record of the pooling in older files.
    if isinstance(values.get("global_pool"), str):
        arguments.setdefault("global_pool", values["global_pool"])
    size = arguments.pop("img_size", None) or (weights.get("input_size") or [])[1:]
    return Recorded(
        CONFIG, TIMM_PREFIX + str(values["architecture"]), None, _arguments(arguments), _size(size),
        Steps(numbers(weights.get("mean")), numbers(weights.get("std")), _crop(weights.get("crop_pct")), None,
              _squashes(weights.get("crop_mode")), text_of(weights.get("interpolation"))),
        names_of(values.get("label_names") or weights.get("label_names")))


def _size(value: Any) -> tuple[int, int] | None:
    """(height, width) of one number or of two; None for nothing."""
    if not value:
        return None
    height, width = (value, value) if isinstance(value, int) else value[-2:]
    return int(height), int(width)


def _crop(value: Any) -> float | None:
    """Raises ConfigError unless it is a fraction."""
    if not value:
        return None
    if not 0 < float(value) <= 1:
        raise ConfigError(f"a crop of {float(value):g} is not above 0 and at most 1")
    return float(value)


def _squashes(mode: Any) -> bool | None:
    """Raises ConfigError if images are padded with a border."""
    if mode == "border":
        raise ConfigError(BORDER)
    return None if mode is None else mode == "squash"


def _of_script(content: Mapping[str, Any]) -> Recorded:
    """The arguments that training scripts of timm, DeiT, DynamicViT and MAE, and Lightning, save in the file."""
    for key in ARGUMENTS:
        values = plain(content.get(key))
        if not isinstance(values, dict):
            continue
        # A configuration may keep the model's part apart.
        values |= next((values[word] for word in ARCHITECTURES if isinstance(values.get(word), dict)), {})
        if model := _architecture(values):
            steps, complete = _script_steps(values, model)
            return Recorded(f"its {key}", model, None, _script_options(values), _script_size(values), steps,
                            complete=complete)
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
    options = {name: values[name] for name in NAMED_LIKE_TIMMS if values.get(name) is not None}
    # MAE's script has a switch.
    if isinstance(options.get("global_pool"), bool):
        options["global_pool"] = "avg" if options["global_pool"] else "token"
    if isinstance(values.get("gp"), str):
        options["global_pool"] = values["gp"]
    further = values.get("model_kwargs")
    return _arguments(options | (dict(further) if isinstance(further, Mapping) else {}))


def _script_size(values: Mapping[str, Any]) -> tuple[int, int] | None:
    return _size(values.get("input_size") or values.get("img_size"))


def _script_steps(values: Mapping[str, Any], model: str) -> tuple[Steps, bool]:
    """The preprocessing, and whether the script is known to take the rest from the model.

    timm's script records what was given, else uses the model's own. The scripts of DeiT, DynamicViT (after ConvNeXt's)
    and MAE have ImageNet's constants, and evaluate 224 of 256 pixels.
    """
    imagenet = Steps(IMAGENET_MEAN, IMAGENET_STD, 0.875, None, False, "bicubic")
    steps = Steps(numbers(values.get("mean")), numbers(values.get("std")), _crop(values.get("crop_pct")), None,
                  _squashes(values.get("crop_mode")), text_of(values.get("interpolation")))
    if "imagenet_default_mean_and_std" in values:
        halves = (0.5, 0.5, 0.5)
        steps = steps.over(imagenet if values["imagenet_default_mean_and_std"] else
                           dataclasses.replace(imagenet, mean=halves, std=halves))
        # From 384 px on, these scripts resize without a crop.
        large = min(_script_size(values) or (0, 0)) >= 384 and not values.get("crop_pct")
        return (dataclasses.replace(steps, crop=1.0, squash=True) if large else steps), True
    if "eval_crop_ratio" in values:
        return steps.over(dataclasses.replace(imagenet, crop=_crop(values["eval_crop_ratio"]) or 0.875)), True
    if model in MAE.values():
        return steps.over(imagenet), True
    return steps, {"mean", "crop_pct"} <= set(values) or not model.startswith(TIMM_PREFIX)


def _arguments(values: Mapping[str, Any]) -> Arguments:
    """timm's keyword arguments, without the number of classes, which follows from the tensors."""
    return as_arguments({key: value for key, value in values.items() if key != "num_classes"})
