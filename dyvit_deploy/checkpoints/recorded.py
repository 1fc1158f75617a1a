"""The form of what a checkpoint says of its model besides the tensors."""
from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import ModelConfig
from ..settings.fields import Arguments


@dataclass(frozen=True)
class Steps:
    """Preprocessing as far as it is recorded; None: it is not said.

    crop: the fraction of the resized image that is kept, 0 to 1; short_side: the same as the length of its shorter
    side, in pixels. squash: the image is resized without keeping its aspect ratio.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop: float | None = None
    short_side: int | None = None
    squash: bool | None = None
    interpolation: str | None = None

    def over(self, other: Steps) -> Steps:
        """These steps, and those of `other` where these say nothing."""
        mine = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(other, **{name: value for name, value in mine.items() if value is not None})

    @property
    def missing(self) -> tuple[str, ...]:
        """The names of what is not said; a crop without `squash` keeps the aspect ratio."""
        crop = None if self.crop is None and self.short_side is None else 1
        named = {"mean": self.mean, "std": self.std, "crop": crop, "interpolation": self.interpolation}
        return tuple(name for name, value in named.items() if value is None)


@dataclass(frozen=True)
class Recorded:
    """What is known besides the tensors. `source` is the file or key that says it, for messages.

    model: a name of the zoo or timm:NAME. config: a complete architecture, of transformers. options: keyword arguments
    of timm. family: the beginning of the model's name, where only that is known. image_size: (height, width) in pixels.
    usual: the preprocessing to assume where `steps` say nothing. complete: what `steps` leave open is the model's own,
    because the training script takes it from there. resampling: how the library interpolates positions. problem: why a
    configuration beside the file cannot be used.
    """

    source: str = ""
    model: str | None = None
    config: ModelConfig | None = None
    options: Arguments = ()
    image_size: tuple[int, int] | None = None
    steps: Steps = Steps()
    class_names: tuple[str, ...] | None = None
    family: str | None = None
    usual: Steps = Steps()
    complete: bool = False
    problem: str = ""
    resampling: str = "bicubic, antialiased"


def numbers(value: Any) -> tuple[float, ...] | None:
    """One or several numbers from JSON or a pickle; None if it is none. Raises TypeError or ValueError for a list of
    something else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return (float(value),)
    if isinstance(value, str) and value:
        raise ValueError(f"{value[:40]!r} in place of numbers")
    return tuple(float(number) for number in value) if isinstance(value, Sequence) and len(value) else None


def text_of(value: Any) -> str | None:
    """A word from JSON or a pickle; None for an empty one, and for timm's "random"."""
    return value if isinstance(value, str) and value not in ("", "random") else None


def names_of(value: Any) -> tuple[str, ...] | None:
    """Class names from a list, or from a mapping of numbers to names; None without any."""
    if isinstance(value, Mapping):
        value = [value[key] for key in sorted(value, key=int)]
    return tuple(str(name) for name in value) if isinstance(value, Sequence) and value else None
