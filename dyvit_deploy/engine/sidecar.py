"""The facts of an engine, in a JSON file beside the plan; the plan itself stays raw, for trtexec, Triton and C++."""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..artifacts.facts import ArtifactFacts
from ..artifacts.files import json_text, sha256, write_together
from ..errors import ArtifactError, ConfigError
from ..settings.fields import JsonConfig
from .config import BatchProfile, BuildConfig
from .layers import EngineLayer
from .library import library_spec

FORMAT = 1
# The source of the precisions of `products`, the most reliable first.
ON_DEVICE = "read from the engine on a GPU"
BY_BUILDER = "as the builder lists them, not yet verified on a device"
BY_GRAPH = "as the graph asks, not yet verified on a device"
NEEDED = {"plan": {"sha256", "bytes"}, "builder": {"format", "version"}}
# Bytes; a larger sidecar is not read.
LARGEST = 64 << 20


@dataclass(frozen=True)
class EngineFacts(JsonConfig):
    """The facts of a plan.

    `plan` has its `sha256` and `bytes`. `builder` has `format` ("trt" or "rtx") and `version`. `target` is
    what it was built on and for: `gpu` and `compute_capability` (None if there was no GPU),
    `compute_capabilities`, `system`. `inputs` and `outputs` map names to [dtype, shape], with None for the batch.
    `products` maps the graph's matrix products to their precision. `fallbacks` are the products with a wider precision
    than the graph requests, each with the requested one. `verified` is the source of the precisions, `untold` are
    the products that this source does not list, with the precision that the graph requests.
    `source` is the ONNX file: `file`, `sha256`. `model` are the facts of a graph that dyvit exported. `rebuild` is the
    command that makes the plan again.
    """

    plan: dict[str, Any]
    builder: dict[str, Any]
    config: BuildConfig
    target: dict[str, Any]
    profiles: tuple[BatchProfile, ...]
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    products: dict[str, str]
    source: dict[str, Any]
    rebuild: str
    verified: str = BY_GRAPH
    untold: tuple[str, ...] = ()
    stripped: bool = False
    model: ArtifactFacts | None = None
    layers: tuple[EngineLayer, ...] = ()
    fused_attention: tuple[str, ...] = ()
    unfused_attention: tuple[str, ...] = ()
    fallbacks: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("plan", "builder", "target", "inputs", "outputs", "products", "source", "fallbacks"):
            if not isinstance(getattr(self, name), Mapping):
                raise ConfigError(f"{name} must be an object, not {getattr(self, name)!r}")
        for fields, keys in ((self.builder, NEEDED["builder"]), (self.target, {"system"}),
                             (self.products, self.products.keys()), (self.fallbacks, self.fallbacks.keys()),
                             ({node: self.products.get(node) for node in self.fallbacks}, self.fallbacks.keys())):
            if missing := sorted(key for key in keys if not isinstance(fields.get(key), str)):
                raise ConfigError(f"{', '.join(missing)} must be given as text")
        if isinstance(self.model, Mapping):
            values = {key: value for key, value in self.model.items() if key != "format"}
            object.__setattr__(self, "model", ArtifactFacts.from_dict(values))
        if isinstance(self.config, Mapping):
            object.__setattr__(self, "config", BuildConfig.from_dict(self.config))
        for name, kind in (("profiles", BatchProfile), ("layers", EngineLayer)):
            values = tuple(kind.from_dict(v) if isinstance(v, Mapping) else v for v in getattr(self, name))
            object.__setattr__(self, name, values)
            if not all(isinstance(value, kind) for value in values):
                raise ConfigError(f"{name} must be a list of {kind.__name__}s")
        if not isinstance(self.config, BuildConfig) or not self.rebuild.isprintable():
            raise ConfigError("config must be an object, and rebuild one line of text")


def sidecar_path(plan: Path) -> Path:
    """`engine.plan.json` of `engine.plan`."""
    return plan.with_name(plan.name + ".json")


def write_plan(path: Path, plan: bytes | memoryview, facts: EngineFacts) -> None:
    """Writes the plan and its sidecar, see `write_together`; the hash in the sidecar reveals an interruption."""
    with write_together(path, sidecar_path(path)) as (draft, sidecar):
        draft.write_bytes(plan)
        sidecar.write_text(json_text({"format": FORMAT, **facts.to_dict()}))


def read_sidecar(plan: Path) -> EngineFacts | None:
    """The facts in the sidecar of `plan`; None if it has no sidecar.

    Raises:
        ArtifactError: the sidecar was not written by this version of dyvit.
    """
    path = sidecar_path(plan)
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        values = json.loads(path.read_text())
        version = values.pop("format")
        if version != FORMAT:
            raise ArtifactError(f"{path} was written in format {version}, this dyvit reads format {FORMAT}; build the "
                                "engine again.")
        facts = EngineFacts.from_dict(values)
        if missing := NEEDED["plan"] - facts.plan.keys():
            raise ValueError(f"plan lacks {', '.join(sorted(missing))}")
        library_spec(facts.builder["format"])
    except (ValueError, KeyError, AttributeError, TypeError, OSError, ConfigError) as error:
        raise ArtifactError(f"{path} does not describe an engine that dyvit wrote ({error}); build the engine "
                            "again, or remove that file.") from error
    return facts


def is_altered(plan: Path, facts: EngineFacts) -> bool:
    """True if `plan` is not the file that `facts` were written for."""
    return {"sha256": sha256(plan), "bytes": plan.stat().st_size} != facts.plan
