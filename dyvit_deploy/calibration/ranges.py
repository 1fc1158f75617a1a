"""Ranges as an artifact: what flows into each product on real images, and on which images.

The file holds everything that decides a quantized graph besides the checkpoint, so the same ranges
give the same graph, byte for byte.
"""
from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from ..artifacts.files import require_file, write_json
from ..config import METHODS, Preprocess
from ..errors import ArtifactError, ConfigError, DataError, did_you_mean
from ..options import JsonConfig

FORMAT = 1
RANGES_KIND = "dyvit ranges"
ENOUGH_IMAGES = 32                          # fewer are noted


@dataclass(frozen=True)
class TensorRange(JsonConfig):
    """Least and greatest value seen, and the threshold that int8 clips |x| at."""

    minimum: float
    maximum: float
    threshold: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.minimum) and math.isfinite(self.maximum) and 0 <= self.threshold < math.inf):
            raise ConfigError(f"A range needs finite numbers and a threshold of at least 0, not {self}.")

    @property
    def largest(self) -> float:
        """The largest |x|: what float8 scales by, whose relative precision does not depend on the range."""
        return max(-self.minimum, self.maximum)


@dataclass(frozen=True)
class Ranges(JsonConfig):
    """Calibration of one model on one set of images.

    `model` is `graph.weights_fingerprint`; `images` are sha256 of the pixels fed, 16 digits each;
    `tensors` are keyed `NODE:INPUT`, the input of a product that the range is of; `skipped` are the
    images that could not be read.
    """

    method: str
    model: str
    model_name: str
    image_size: tuple[int, int]
    preprocess: Preprocess
    source: str
    images: tuple[str, ...]
    tensors: dict[str, TensorRange]
    versions: dict[str, str]
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"Unknown calibration method {self.method!r}.{did_you_mean(self.method, METHODS)}")
        if isinstance(self.preprocess, Mapping):
            object.__setattr__(self, "preprocess", Preprocess.from_dict(self.preprocess))
        object.__setattr__(self, "tensors", {
            name: value if isinstance(value, TensorRange) else TensorRange.from_dict(value)
            for name, value in self.tensors.items()})

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the images."""
        return image_notes(self.images, self.skipped)

    def sha256(self) -> str:
        """Hex digest of what decides the quantized graph: the ranges, not the versions that collected them."""
        values = self.to_dict()
        del values["versions"], values["skipped"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Writes the ranges as JSON, atomically."""
        write_json(path, {"kind": RANGES_KIND, "format": FORMAT, **self.to_dict()})

    @classmethod
    def load(cls, path: str | Path) -> Ranges:
        """Raises ArtifactError when `path` holds no ranges."""
        try:
            values = json.loads(require_file(path).read_text())
            if values.pop("kind", None) != RANGES_KIND or values.pop("format", None) != FORMAT:
                raise ArtifactError(f"{path} holds no ranges of this dyvit; make them with dyvit calibrate.")
            return cls.from_dict(values)
        except (ValueError, AttributeError, TypeError, ConfigError) as error:
            raise ArtifactError(f"{path} holds no ranges that can be read; make them with dyvit calibrate.") from error

    def check_fits(self, fingerprint: str, preprocess: Preprocess, image_size: tuple[int, int]) -> None:
        """Raises DataError when these ranges are not of the model with this fingerprint and preprocessing."""
        if fingerprint != self.model:
            raise DataError(f"The ranges are of another model ({self.model_name}, {self.model[:12]}) than this one "
                            f"({fingerprint[:12]}): its weights or kept counts differ; calibrate again.")
        if (preprocess, tuple(image_size)) != (self.preprocess, tuple(self.image_size)):
            raise DataError("The ranges were collected with other preprocessing or image size than the model's; "
                            "calibrate again.")

    def table(self) -> Table:
        """One row per tensor: what was seen, and what is clipped."""
        title = f"{self.model_name}: {self.method} over {len(self.images)} images of {self.source}"
        table = Table(title=Text(title), title_justify="left")
        table.add_column("input of", overflow="fold")
        for column in ("least", "greatest", "clipped at", "of the largest"):
            table.add_column(column, justify="right", no_wrap=True)
        for name, value in self.tensors.items():
            share = value.threshold / value.largest if value.largest else 1.0
            table.add_row(Text(name.removesuffix(":0")), f"{value.minimum:.4g}", f"{value.maximum:.4g}",
                          f"{value.threshold:.4g}", f"{share:.0%}")
        return table


def image_notes(hashes: Sequence[str], skipped: Sequence[str]) -> tuple[str, ...]:
    """What a user should know about images with these hashes, of which some were skipped."""
    distinct, notes = len(set(hashes)), []
    if skipped:
        notes.append(f"{len(skipped)} images could not be read and were skipped, the first: {skipped[0]}")
    if distinct < len(hashes):
        notes.append(f"Of {len(hashes)} calibration images only {distinct} are distinct.")
    if distinct < ENOUGH_IMAGES:
        notes.append(f"{distinct} calibration images are few; take {ENOUGH_IMAGES} or more.")
    return tuple(notes)


def tensor_key(node: str, index: int) -> str:
    """The key of a product's input in `Ranges.tensors`."""
    return f"{node}:{index}"

