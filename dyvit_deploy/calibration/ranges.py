"""Calibration ranges as an artifact: the range of each product's input, and the images it was measured on.

Together with the checkpoint, the file determines the quantized graph: the same ranges give the same
graph, byte for byte.
"""
from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from ..artifacts.files import require_file, write_json
from ..config import METHODS
from ..errors import ArtifactError, ConfigError, DataError, did_you_mean, reason
from ..settings.fields import JsonConfig
from ..settings.preprocessing import Preprocess
from ..settings.tables import Table
from ..settings.untrusted import read_json

FORMAT = 1
RANGES_KIND = "dyvit ranges"
# Fewer images than this are noted.
ENOUGH_IMAGES = 32


@dataclass(frozen=True)
class TensorRange(JsonConfig):
    """The least and greatest value of a tensor, and the threshold at which int8 clips |x|."""

    minimum: float
    maximum: float
    threshold: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.minimum) and math.isfinite(self.maximum) and 0 <= self.threshold < math.inf):
            raise ConfigError(f"A range needs finite numbers and a threshold of at least 0, not {self}.")

    @property
    def largest(self) -> float:
        """The largest |x|. float8 scales by it, because its relative precision does not depend on the range."""
        return max(-self.minimum, self.maximum)


@dataclass(frozen=True)
class Ranges(JsonConfig):
    """The calibration of one model on one set of images.

    `model` is the graph's `weights_fingerprint`. `images` are the first 16 digits of the sha256 of the pixels of
    each image. `tensors` are the ranges by `NODE:INPUT`, a product and the index of its input. `skipped` are the
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

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes about the images, for the user."""
        return image_notes(self.images, self.skipped)

    def sha256(self) -> str:
        """Hex digest of what determines the quantized graph: without library versions and skipped images."""
        values = self.to_dict()
        del values["versions"], values["skipped"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Writes the ranges as JSON, atomically."""
        write_json(path, {"kind": RANGES_KIND, "format": FORMAT, **self.to_dict()})

    @classmethod
    def load(cls, path: str | Path) -> Ranges:
        """Reads ranges. Raises ArtifactError if `path` contains none."""
        try:
            values = read_json(require_file(path))
            if not isinstance(values, dict) or (values.pop("kind", None), values.pop("format", None)) != (RANGES_KIND,
                                                                                                          FORMAT):
                raise ArtifactError(f"{path} holds no ranges of this dyvit; make them with dyvit calibrate.")
            return cls.from_dict(values)
        except ConfigError as error:
            raise ArtifactError(f"{path} holds no ranges that can be read ({reason(error)}); make them with "
                                "dyvit calibrate.") from error

    def check_fits(self, fingerprint: str, preprocess: Preprocess, image_size: tuple[int, int]) -> None:
        """Raises DataError if these ranges belong to another model, preprocessing or image size."""
        if fingerprint != self.model:
            raise DataError(f"The ranges are of another model ({self.model_name}, {self.model[:12]}) than this one "
                            f"({fingerprint[:12]}): its weights or kept counts differ; calibrate again.")
        if (preprocess, tuple(image_size)) != (self.preprocess, tuple(self.image_size)):
            raise DataError("The ranges were collected with other preprocessing or image size than the model's; "
                            "calibrate again.")

    def table(self) -> Table:
        """One row per tensor: its range and its threshold."""
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
    """Notes for the user about calibration images with these hashes, and about skipped ones."""
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

