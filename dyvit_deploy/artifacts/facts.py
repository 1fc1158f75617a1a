"""The facts that every artifact records.

A checkpoint stores its facts as JSON under `dyvit` in the safetensors header, an ONNX file under `dyvit` in its
metadata properties, and an engine in the JSON file beside it.
"""
from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from ..config import ModelConfig, PruneConfig, check_stages
from ..errors import ArtifactError, ConfigError, reason
from ..settings.fields import JsonConfig
from ..settings.untrusted import parse_json

METADATA_KEY = "dyvit"
FORMAT = 1


class RangesOrigin(TypedDict):
    """Which calibration a quantized graph was made with: on how many `images`, and the hash of `Ranges.sha256`."""

    method: str
    images: int
    sha256: str


class Lowered(TypedDict, total=False):
    """How the precision was lowered: the `target`, the precision of everything that is not in it (`rest`), and the
    products left in higher precision (`kept`)."""

    target: str
    rest: str | None
    kept: tuple[str, ...]
    ranges: RangesOrigin | None


class Parent(TypedDict, total=False):
    """The file that an artifact was made from; `weights` is the set that was read of a checkpoint, "model" or "ema"."""

    file: str
    sha256: str
    weights: str


class TrainedRecipe(TypedDict, total=False):
    """What is read of a recipe that was trained with; `elastic` are the lowest and highest keep ratio."""

    epochs: int
    elastic: tuple[float, float] | None


class Training(TypedDict, total=False):
    """What a training run records of itself, see `training.loop`."""

    data: str
    recipe: TrainedRecipe
    parent: Parent | None
    versions: dict[str, str]
    epoch: int
    step: int
    sums: dict[str, float]
    best_val_top1: float
    best_val_ema_top1: float


@dataclass(frozen=True)
class ArtifactFacts(JsonConfig):
    """The facts of an artifact.

    `prune` is None for a dense backbone. The exporter sets the fields from `precision` on:
    `keep_counts` are the kept patch tokens per stage; `parent` is the file that was exported (`file`,
    `sha256`, `weights`); `versions` are those of the libraries that exported it. `lowered` is None for
    float32. `gate` is the result of comparing the artifact with its checkpoint at export: "passed", "rejected" or
    "not run". `forms` are the inference forms in a graph, see
    model.forms. `assumed` are statements about what the checkpoint does not say, such as its mean and std; `adapted`
    says how its tensors were changed to fit, such as interpolated positions.
    """

    model: ModelConfig
    prune: PruneConfig | None = None
    class_names: tuple[str, ...] | None = None
    training: Annotated[dict[str, Any], Training] | None = None
    precision: str = "float32"
    input: str = "float32"
    keep_counts: tuple[int, ...] | None = None
    parent: Annotated[dict[str, Any], Parent] | None = None
    versions: dict[str, str] | None = None
    lowered: Annotated[dict[str, Any], Lowered] | None = None
    forms: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    gate: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ArtifactFacts:
        """See `JsonConfig.from_dict`.

        Raises:
            ConfigError: also for facts that contradict each other.
        """
        facts = super().from_dict(values)
        model, prune, names, kept = facts.model, facts.prune, facts.class_names, facts.keep_counts
        if names is not None and len(names) != model.classes:
            raise ConfigError(f"{len(names)} class names do not fit {model.classes} classes")
        stages = prune.stages if prune else ()
        check_stages(stages, model.depth)
        if prune:
            prune.counts(model.patches)
        if kept and len(kept) != len(stages):
            raise ConfigError(f"{len(kept)} kept counts do not fit {len(stages)} stages")
        return facts

    def to_json(self) -> str:
        """The text stored in the artifact, one line of JSON."""
        return json.dumps({"format": FORMAT, **self.to_dict()}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, where: str) -> ArtifactFacts:
        """The facts in `text`. Raises ArtifactError, which names the file `where`, if they cannot be read."""
        try:
            return cls.from_dict(with_format(parse_json(text), FORMAT, where, "export again"))
        except ConfigError as error:
            raise ArtifactError(f"The dyvit metadata in {where} cannot be read ({reason(error)}); export it "
                                "again.") from error

    @property
    def dense(self) -> bool:
        """True if no token is dropped."""
        return self.prune is None or self.prune.is_dense(self.model.patches)

    @property
    def elastic(self) -> tuple[float, float] | None:
        """The lowest and highest keep ratio of elastic training; None if training was not elastic, or not recorded."""
        span = (self.training or {}).get("recipe", {}).get("elastic")
        return (float(span[0]), float(span[1])) if span else None


def with_format(values: Any, supported: int, where: str, advice: str) -> dict[str, Any]:
    """The object `values`, from the file `where`, without its `format`; `advice` is what makes the file again.

    Raises:
        ArtifactError: it was written in another format than `supported`.
        ConfigError: it is not an object, or has no format.
    """
    if not isinstance(values, dict) or not isinstance(values.get("format"), int):
        raise ConfigError("it is not an object with a format")
    if values["format"] != supported:
        raise ArtifactError(f"{where} was written in format {values['format']}, this dyvit reads format {supported}; "
                            f"use the dyvit version that wrote it, or {advice}.")
    return {name: value for name, value in values.items() if name != "format"}


def library_versions(*distributions: str) -> dict[str, str]:
    """The versions of this package, of Python, and of the installed ones among `distributions`."""
    found = {name: version_of(name) for name in distributions}
    return {"dyvit-deploy": own_version(), "python": platform.python_version()} | {
        name: version for name, version in found.items() if version}


def version_of(distribution: str) -> str | None:
    """The version of an installed distribution; None if it is not installed, or if its metadata is damaged."""
    try:
        # An interrupted installation may leave a folder without metadata, or with half of it.
        return importlib.metadata.version(distribution) or None
    except (importlib.metadata.PackageNotFoundError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def own_version() -> str:
    # A source tree that is not installed has no version.
    return version_of("dyvit-deploy") or "unknown"
