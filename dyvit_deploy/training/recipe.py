"""Hyper-parameters as data: the published recipe per model, and one for small data."""
from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, did_you_mean, reason, shorten
from ..optional import require
from ..settings.fields import OPTIONS, JsonConfig, kind_of, option
from ..settings.untrusted import check_values

TRAIN_PRECISIONS = ("fp32", "bf16", "fp16")
# Bytes of a recipe and characters of a line; what the parsers take for dotted names grows with the square of a line.
MOST_BYTES, LONGEST_LINE = 32 << 10, 1000
# How a value is switched off on the command line.
OFF = ("none", "off")


@dataclass(frozen=True)
class Recipe(JsonConfig):
    """How one model is trained. What each value means is the help text of its command-line option.

    The learning rate rises over the warm-up to its peak and falls to `lr_min` along a cosine; the peak is
    `lr` times batch / lr_batch, or `lr` itself when `lr_batch` is None.
    """

    epochs: int = option(MISSING, "Epochs of the student (or of the dense model at --keep-ratio 1.0).")
    lr: float = option(MISSING, "Peak learning rate.")
    lr_batch: int | None = option(None, "Batch that --lr is meant for; it is scaled to others.")
    batch: int = option(128, "Images per optimizer step, over all processes.")
    images: int | None = option(None, "Images per epoch; default: all.")
    lr_min: float = option(1e-5, "Learning rate at the end.")
    backbone_lr: float = option(1.0, "Factor on the backbone's learning rate.")
    freeze_epochs: int = option(0, "Epochs in which the backbone is frozen.")
    warmup_epochs: float = option(1.0, "Epochs in which the learning rate rises.")
    weight_decay: float = option(0.05, "Of AdamW; none for biases and norms.")
    clip_grad: float | None = option(1.0, "Largest norm of the gradient.")
    ratio_weight: float = option(2.0, "Weight of the keep-ratio loss.")
    kl_weight: float = option(0.5, "Weight of the distance to the teacher's predictions.")
    distill_weight: float = option(0.5, "Weight of the distance to the teacher's tokens.")
    elastic: tuple[float, float] | None = option(None, "Train for every keep ratio in LOW:HIGH at once.")
    drop_path: float = option(0.0, "Stochastic depth of the last block.")
    ema: float | None = option(None, "Decay of the moving average of the weights.")
    label_smoothing: float = option(0.1, "Of the class labels.")
    mixup: float = option(0.0, "Alpha of mixup; 0 is off.")
    cutmix: float = option(0.0, "Alpha of cutmix; 0 is off.")
    rand_augment: str | None = option(None, "timm's RandAugment, e.g. rand-m9-mstd0.5-inc1.")
    color_jitter: float = option(0.0, "Strength, without RandAugment.")
    random_erasing: float = option(0.0, "Probability.")
    random_crop: tuple[float, float] | None = option(None, "Area LOW:HIGH of random crops; none: as in evaluation.")
    flip: float = option(0.5, "Probability of a mirrored image.")
    precision: str = option('bf16', "fp32, bf16 or fp16 matrix products.")
    seed: int = option(0, "Of weights, data order, augmentation and sampled tokens.")

    def __post_init__(self) -> None:
        for name in ("epochs", "lr", "batch"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"Training needs a positive {name}, not {getattr(self, name)}.")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"The seed must lie between 0 and 2**31 - 1, not {self.seed}.")
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, (int, float)) and not 0 <= value < math.inf:
                raise ConfigError(f"The recipe's {entry.name} must be a number from 0 on, not {value}.")
        for name in ("drop_path", "ema", "label_smoothing", "random_erasing", "flip"):
            if (getattr(self, name) or 0) > 1:
                raise ConfigError(f"The recipe's {name} must lie between 0 and 1, not {getattr(self, name)}.")
        if self.images is not None and self.images < self.batch:
            raise ConfigError(f"{self.images} images an epoch do not fill one batch of {self.batch}; "
                              "lower --batch or raise --images.")
        if self.precision not in TRAIN_PRECISIONS:
            raise ConfigError(f"Unknown precision {self.precision!r}.{did_you_mean(self.precision, TRAIN_PRECISIONS)}")
        for name in ("elastic", "random_crop"):
            low, high = getattr(self, name) or (1, 1)
            if not 0 < low <= high <= 1:
                raise ConfigError(f"The recipe's {name} is a range like 0.5:0.9 within 0 to 1, not {low:g}:{high:g}.")

    @property
    def peak_lr(self) -> float:
        """`lr`, scaled linearly when it is meant for another batch."""
        return self.lr * self.batch / self.lr_batch if self.lr_batch else self.lr


# DynamicViT (Rao et al., 2021), supplement and published code; the precision and a batch that one process
# can have are up to the user. Its dense models are DeiT's: Touvron et al., 2021, table 9.
_PAPER = Recipe(
    epochs=30, lr=1e-3, lr_batch=1024, batch=1024, lr_min=1e-6, backbone_lr=0.01, freeze_epochs=5, warmup_epochs=5,
    clip_grad=None, ema=0.9999, mixup=0.8, cutmix=1.0, rand_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4,
    random_erasing=0.25, random_crop=(0.08, 1.0))
_PAPER_DENSE = dataclasses.replace(_PAPER, epochs=300, lr_min=1e-5, backbone_lr=1.0, freeze_epochs=0, drop_path=0.1,
                                   ema=0.99996)
_SMALL = Recipe(epochs=8, lr=1e-3, backbone_lr=0.3, warmup_epochs=0.5, ema=0.998)
_SMALL_DENSE = Recipe(epochs=14, lr=1e-3, ema=0.998)


@dataclass(frozen=True)
class Recipes:
    """Recipes of a student, of a dense model from scratch, of one that starts from a backbone (`tune`), and what
    single models have otherwise as students."""

    student: Recipe
    dense: Recipe
    tune: Recipe
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


RECIPES: dict[str, Recipes] = {
    "small": Recipes(_SMALL, _SMALL_DENSE, dataclasses.replace(_SMALL_DENSE, epochs=5, lr=3e-4)),
    "paper": Recipes(_PAPER, _PAPER_DENSE, dataclasses.replace(_PAPER_DENSE, epochs=30, lr=1e-4, drop_path=0.0),
                     {"deit-b": {"ratio_weight": 5.0, "drop_path": 0.2}}),
}
FIELDS: dict[str, Any] = {entry.name: entry for entry in dataclasses.fields(Recipe)}


def make_recipe(name: str, model: str, kind: str, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe called `name` for `model`, with single values replaced; `kind` is a field of `Recipes`.

    An overriding `lr` without an `lr_batch` is meant as it is, whatever the batch.

    Raises:
        ConfigError: unknown recipe or value, or a value that makes no sense.
    """
    if name not in RECIPES:
        raise ConfigError(f"Unknown recipe {name!r}.{did_you_mean(name, RECIPES)}")
    recipes = RECIPES[name]
    values = dict(recipes.models.get(model, {})) if kind == "student" else {}
    if overrides.get("lr") is not None:
        values["lr_batch"] = None
    values |= {key: parse_value(key, value) for key, value in overrides.items()}
    recipe: Recipe = dataclasses.replace(getattr(recipes, kind), **values)
    if 0 < recipe.epochs <= recipe.freeze_epochs and "freeze_epochs" not in overrides:
        raise ConfigError(f"The backbone would stand still in all {recipe.epochs} epochs, because the recipe {name!r} "
                          f"freezes it for {recipe.freeze_epochs}; pass --freeze-epochs too.")
    return recipe


def values_of(name: str) -> str:
    """What each base recipe has for a student's `name`, for a help text: `[small 8, paper 30]`."""
    values = {base: getattr(recipes.student, name) for base, recipes in RECIPES.items()}
    shown = {base: "off" if value is None else ":".join(map(str, value)) if isinstance(value, tuple) else value
             for base, value in values.items()}
    texts = [f"{base} {value}" for base, value in shown.items()] if len(set(shown.values())) > 1 else [
        str(*set(shown.values()))]
    return f"[{', '.join(texts)}]"


def parse_value(name: str, value: Any) -> Any:
    """`value` as the recipe's field `name` has it; "none" switches off what can be off."""
    if name not in FIELDS:
        raise ConfigError(f"The recipe has no value {shorten(name)}.{did_you_mean(name, FIELDS)}")
    entry = FIELDS[name]
    kind = kind_of(entry, entry.metadata[OPTIONS].options[0])
    # YAML reads `off` as false.
    if value is None or value is False or value in OFF:
        if "None" in str(entry.type):
            return None
        raise ConfigError(f"The recipe's {name} cannot be switched off; give a value.")
    try:
        text = isinstance(value, str)
        if value is True or (kind.read is int and float(value) != int(value)) or (kind.read is str and not text):
            raise ValueError
        return kind.read(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"The recipe's {name} is {kind.noun}, not {shorten(value)}.") from error


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The overrides in a .toml or .yaml file, flat, named like the recipe's fields; `recipe` names the base.

    Raises:
        ConfigError: no such file, not of that form, or unknown names in it.
    """
    path = Path(path)
    if path.suffix.lower() not in READ:
        raise ConfigError(f"{path} is no recipe file; name a {', '.join(READ)}.")
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES or max(map(len, content.splitlines()), default=0) > LONGEST_LINE:
            raise ConfigError(f"it has more than {MOST_BYTES >> 10} KiB, or a line above {LONGEST_LINE} characters")
        values = READ[path.suffix.lower()](content.decode("utf-8-sig"))
        check_values(values)
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be used as a recipe ({reason(error)}); correct it.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    # Each parser has errors of its own.
    except Exception as error:
        raise ConfigError(f"{path} is not valid {path.suffix[1:].upper()}: {' '.join(str(error).split())[:300]}."
                          ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold one value per line, like `epochs = 30` or `epochs: 30`.")
    for name, value in values.items():
        if name != "recipe":
            parse_value(str(name), value)
        elif not isinstance(value, str):
            raise ConfigError(f"{path} names the base recipe as {shorten(value)}; write `recipe: paper`, for example.")
    return values


def _toml(text: str) -> Any:
    return require("tomllib" if sys.version_info >= (3, 11) else "tomli").loads(text)


def _yaml(text: str) -> Any:
    yaml = require("yaml")
    # Aliases of aliases are a small file, and no end of values.
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
        raise ValueError("aliases (*name) are not read, write the value itself")
    return yaml.safe_load(text)


READ: dict[str, Callable[[str], Any]] = {".toml": _toml, ".yaml": _yaml, ".yml": _yaml}
