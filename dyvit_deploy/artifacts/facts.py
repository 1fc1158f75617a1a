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
from typing import Any

from ..config import ModelConfig, PruneConfig
from ..errors import ArtifactError, ConfigError
from ..settings.fields import JsonConfig

METADATA_KEY = "dyvit"
FORMAT = 1


@dataclass(frozen=True)
class ArtifactFacts(JsonConfig):
    """The facts of an artifact.

    `prune` is None for a dense backbone. The exporter sets the fields from `precision` on:
    `keep_counts` are the kept patch tokens per stage; `parent` is the file that was exported (`file`,
    `sha256`, `weights`); `versions` are those of the libraries that exported it. `lowered` is None for
    float32, else it describes the lower precision: `target`, `rest` (the precision of everything that is
    not in `precision`), `kept` (products left in higher precision), `ranges` (method, images, sha256)
    and `gate` ("passed", "rejected" or "not run"). `forms` are the inference forms in a graph, see
    model.forms. `assumed` are statements about what the checkpoint does not say, such as its mean and std; `adapted`
    says how its tensors were changed to fit, such as interpolated positions.
    """

    model: ModelConfig
    prune: PruneConfig | None = None
    class_names: tuple[str, ...] | None = None
    training: dict[str, Any] | None = None
    precision: str = "float32"
    input: str = "float32"
    keep_counts: tuple[int, ...] | None = None
    parent: dict[str, Any] | None = None
    versions: dict[str, str] | None = None
    lowered: dict[str, Any] | None = None
    forms: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.model, ModelConfig):
            object.__setattr__(self, "model", ModelConfig.from_dict(self.model))
        if isinstance(self.prune, Mapping):
            object.__setattr__(self, "prune", PruneConfig.from_dict(self.prune))
        for name in ("forms", "assumed", "adapted"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, kind in (("forms", str), ("keep_counts", int), ("assumed", str), ("adapted", str)):
            if not all(isinstance(item, kind) for item in getattr(self, name) or ()):
                raise ConfigError(f"{name} has an entry that is not {kind.__name__}")

    def to_json(self) -> str:
        """The text stored in the artifact, one line of JSON."""
        return json.dumps({"format": FORMAT, **self.to_dict()}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, where: str) -> ArtifactFacts:
        """The facts in `text`. Raises ArtifactError, which names the file `where`, if they cannot be read."""
        try:
            values = json.loads(text)
            version = values.pop("format")
            if version != FORMAT:
                raise ArtifactError(f"{where} was written in format {version}, this dyvit reads format {FORMAT}; "
                                    "use the dyvit version that wrote it, or export again.")
            return cls.from_dict(values)
        except (ValueError, KeyError, AttributeError, TypeError, ConfigError) as error:
            raise ArtifactError(f"The dyvit metadata in {where} cannot be read ({error}); export it again.") from error

    @property
    def dense(self) -> bool:
        """True if no token is dropped."""
        return self.prune is None or self.prune.is_dense(self.model.patches)

    @property
    def elastic(self) -> tuple[float, float] | None:
        """The lowest and highest keep ratio of elastic training; None if training was not elastic, or not recorded."""
        span = ((self.training or {}).get("recipe") or {}).get("elastic")
        return (float(span[0]), float(span[1])) if span else None


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
