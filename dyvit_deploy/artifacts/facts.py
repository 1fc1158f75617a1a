"""What every artifact records about itself.

A checkpoint keeps its facts as JSON under `dyvit` in the safetensors header, an ONNX file under `dyvit` in its metadata
properties, an engine in the JSON file beside it.
"""
from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import ModelConfig, PruneConfig
from ..errors import ArtifactError, ConfigError
from ..options import JsonConfig

METADATA_KEY = "dyvit"
FORMAT = 1


@dataclass(frozen=True)
class ArtifactFacts(JsonConfig):
    """What an artifact knows about itself.

    `prune` is None for a dense backbone. The fields from `precision` on are set by the exporter:
    `keep_counts` are patch tokens per stage, `parent` names the file exported from (`file`,
    `sha256`, `weights`), `versions` the libraries that did it. `lowered` is None for float32, else
    how the precision was lowered: `target`, `rest` (the precision of everything that is not
    `precision`), `kept` (products left in higher precision), `ranges` (method, images, sha256) and
    `gate` ("passed", "rejected" or "not run"). `forms` are the exact rewrites in a graph, see model.forms.
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

    def __post_init__(self) -> None:
        if not isinstance(self.model, ModelConfig):
            object.__setattr__(self, "model", ModelConfig.from_dict(self.model))
        if isinstance(self.prune, Mapping):
            object.__setattr__(self, "prune", PruneConfig.from_dict(self.prune))
        object.__setattr__(self, "forms", tuple(self.forms))

    def to_json(self) -> str:
        """One line of JSON, the text stored in the artifact."""
        return json.dumps({"format": FORMAT, **self.to_dict()}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, where: str) -> ArtifactFacts:
        """Raises ArtifactError, naming the file `where`, when the text is not ours."""
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
        """True when no token is dropped."""
        return self.prune is None or self.prune.is_dense(self.model.patches)

    @property
    def elastic(self) -> tuple[float, float] | None:
        """The lowest and highest keep ratio of elastic training; None where it was trained for one, or not here."""
        span = ((self.training or {}).get("recipe") or {}).get("elastic")
        return (float(span[0]), float(span[1])) if span else None


def library_versions(*distributions: str) -> dict[str, str]:
    """Versions of this package, Python and those of `distributions` that are installed."""
    versions = {"dyvit-deploy": own_version(), "python": platform.python_version()}
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def own_version() -> str:
    try:
        return importlib.metadata.version("dyvit-deploy")
    except importlib.metadata.PackageNotFoundError:                        # a source tree that was not installed
        return "unknown"
