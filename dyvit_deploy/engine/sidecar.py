"""The facts of an engine, in a JSON file beside the plan; the plan itself stays raw, for trtexec, Triton and C++."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict

from ..artifacts.facts import ArtifactFacts, with_format
from ..artifacts.files import json_text, sha256, write_together
from ..errors import ArtifactError, ConfigError, reason
from ..settings.fields import JsonConfig
from ..settings.untrusted import check_name, read_json
from .config import BatchProfile, BuildConfig
from .layers import EngineLayer
from .library import library_spec

FORMAT = 1
# Of a tensor, in TensorRT.
MOST_DIMENSIONS = 8
# The source of the precisions of `products`, the most reliable first.
ON_DEVICE = "read from the engine on a GPU"
BY_BUILDER = "as the builder lists them, not yet verified on a device"
BY_GRAPH = "as the graph asks, not yet verified on a device"


class Plan(TypedDict):
    """The file that the facts belong to."""

    sha256: str
    bytes: int


class Builder(TypedDict):
    """What built the plan: `format` is "trt" or "rtx"."""

    format: str
    version: str


class _System(TypedDict):
    system: str


class Target(_System, total=False):
    """What a plan was built on and for: `gpu` and `compute_capability` are None if there was no GPU."""

    gpu: str | None
    compute_capability: str | None
    compute_capabilities: tuple[str, ...] | None


class Source(TypedDict, total=False):
    """The ONNX file that the plan was built from."""

    file: str
    sha256: str


# Names of tensors, with their type and shape; None for the batch.
Interface = dict[str, tuple[str, tuple[int | None, ...]]]


@dataclass(frozen=True)
class EngineFacts(JsonConfig):
    """The facts of a plan.

    `inputs` and `outputs` map names to [dtype, shape], with None for the batch. `products` maps the graph's matrix
    products to their precision. `fallbacks` are the products with a wider precision than the graph requests, each with
    the requested one. `verified` is the source of the precisions, `untold` are the products that this source does not
    list, with the precision that the graph requests. `model` are the facts of a graph that dyvit exported. `rebuild` is
    the command that makes the plan again.
    """

    plan: Annotated[dict[str, Any], Plan]
    builder: Annotated[dict[str, Any], Builder]
    config: BuildConfig
    target: Annotated[dict[str, Any], Target]
    profiles: tuple[BatchProfile, ...]
    inputs: Annotated[dict[str, Any], Interface]
    outputs: Annotated[dict[str, Any], Interface]
    products: dict[str, str]
    source: Annotated[dict[str, Any], Source]
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
        """
        Raises:
            ConfigError: facts contradict each other.
        """
        if missing := sorted(self.fallbacks.keys() - self.products.keys()):
            raise ConfigError(f"{', '.join(missing[:3])} must be among the products")
        if not self.rebuild.isprintable():
            raise ConfigError("rebuild must be one line of text")
        for name, (_, shape) in (self.inputs | self.outputs).items():
            check_name(name, "name of a tensor")
            if len(shape) > MOST_DIMENSIONS:
                raise ConfigError(f"{name} has {len(shape)} dimensions, and at most {MOST_DIMENSIONS} are supported")
        for name in ("inputs", "profiles"):
            if not getattr(self, name):
                raise ConfigError(f"{name} must not be empty")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EngineFacts:
        """See `JsonConfig.from_dict`; the model may have a format of its own."""
        model = values.get("model")
        if isinstance(model, Mapping):
            values = {**values, "model": {name: value for name, value in model.items() if name != "format"}}
        return super().from_dict(values)


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
        facts = EngineFacts.from_dict(with_format(read_json(path), FORMAT, str(path), "build the engine again"))
        library_spec(facts.builder["format"])
    except ConfigError as error:
        raise ArtifactError(f"{path} does not describe an engine that dyvit wrote ({reason(error)}); build the "
                            "engine again, or remove that file.") from error
    return facts


def is_altered(plan: Path, facts: EngineFacts) -> bool:
    """True if `plan` is not the file that `facts` were written for."""
    return {"sha256": sha256(plan), "bytes": plan.stat().st_size} != facts.plan
