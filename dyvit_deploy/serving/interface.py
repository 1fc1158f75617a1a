"""The inputs and outputs of an artifact, as a server's configuration needs them."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..artifacts.facts import ArtifactFacts
from ..artifacts.files import require_file
from ..artifacts.kinds import ENGINE, ONNX, OPENVINO, SUFFIXES, kind_of
from ..engine.config import BatchProfile
from ..engine.preflight import require_described
from ..engine.sidecar import sidecar_path
from ..errors import ArtifactError, ConfigError
from ..graph.read import Tensor, graph_facts, graph_tensors, load_graph

# By OpenVINO's names.
NUMPY_TYPES = {"f32": "float32", "f16": "float16", "u8": "uint8", "i64": "int64"}


@dataclass(frozen=True)
class Servable:
    """An artifact that Triton can run.

    `backend` is Triton's name of the runtime. `files` are the files that the runtime needs, each with its name in a
    version folder; the artifact is the first. The shapes of `input` and `outputs` begin with the batch, None.
    `profiles` are an engine's optimization profiles, empty if any batch runs. `version_compatible` is True for an
    engine that later versions of TensorRT can run too, with the runtime inside the plan.
    """

    path: Path
    backend: str
    files: tuple[tuple[Path, str], ...]
    facts: ArtifactFacts
    input: Tensor
    outputs: tuple[Tensor, ...]
    profiles: tuple[BatchProfile, ...] = ()
    version_compatible: bool = False

    @property
    def largest(self) -> int | None:
        """The largest batch that the artifact runs; None if any does."""
        return max((profile.max for profile in self.profiles), default=None)


def read_servable(path: str | Path) -> Servable:
    """Reads an .onnx, .xml or .plan that dyvit wrote, without running it.

    Raises:
        ArtifactError: it is missing, damaged, or not written by dyvit, so that its preprocessing is unknown.
        ConfigError: Triton cannot run it: it is for TensorRT for RTX, or its profiles leave batch sizes out.
    """
    path = require_file(path)
    kind = kind_of(path)
    if kind not in READERS:
        raise ArtifactError(f"{path} cannot be served; name an ONNX file (.onnx), an OpenVINO model (.xml), an engine "
                            "plan (.plan) or a checkpoint.")
    found = READERS[kind](path)
    for tensor in (found.input, *found.outputs):
        if tensor.shape[:1] != (None,) or None in tensor.shape[1:]:
            raise ArtifactError(f"{tensor.name!r} of {path} has the shape {list(tensor.shape)}; Triton batches only "
                                "what is free in its first dimension and fixed in the others: export it again.")
    return found


def _read_onnx(path: Path) -> Servable:
    proto = load_graph(path, weights=False)
    facts = _require_facts(graph_facts(proto, str(path)), path)
    if (facts.lowered or {}).get("target") == "tensorrt":
        raise ConfigError(f"{path} is a graph for TensorRT; build an engine from it (dyvit build {path} --format trt) "
                          "and serve that.")
    [image], outputs = graph_tensors(proto.graph.input), graph_tensors(proto.graph.output)
    return Servable(path, "onnxruntime", ((path, "model.onnx"),), facts, image, tuple(outputs))


def _read_openvino(path: Path) -> Servable:
    from ..runners.openvino import read_openvino

    model, facts = read_openvino(path)

    def tensors(values: Sequence[object]) -> list[Tensor]:
        return [Tensor(value.any_name, NUMPY_TYPES[value.element_type.get_type_name()],  # type: ignore[attr-defined]
                       tuple(None if side.is_dynamic else side.get_length()
                             for side in value.partial_shape))  # type: ignore[attr-defined]
                for value in values]
    files = ((path, "model.xml"), (path.with_suffix(".bin"), "model.bin"))
    return Servable(path, "openvino", files, _require_facts(facts, path), tensors(model.inputs)[0],
                    tuple(tensors(model.outputs)))


def _read_engine(path: Path) -> Servable:
    engine = require_described(path)
    if engine.builder["format"] != "trt":
        raise ConfigError(f"{path} is an engine of TensorRT for RTX, which Triton does not run; build one with "
                          "--format trt.")
    if engine.stripped:
        raise ConfigError(f"{path} has no weights; put them in with dyvit refit.")
    _check_profiles(path, engine.profiles)

    def tensors(values: dict[str, tuple[str, Sequence[int | None]]]) -> list[Tensor]:
        return [Tensor(name, dtype, tuple(shape)) for name, (dtype, shape) in values.items()]
    files = ((path, "model.plan"), (sidecar_path(path), "model.plan.json"))
    return Servable(path, "tensorrt", files, _require_facts(engine.model, path), tensors(engine.inputs)[0],
                    tuple(tensors(engine.outputs)), engine.profiles, engine.config.version_compatible)


def _check_profiles(path: Path, profiles: Sequence[BatchProfile]) -> None:
    """Raises ConfigError if a batch size up to the largest fits no profile: the server would fail on it."""
    reached = 0
    for profile in sorted(profiles, key=lambda p: p.min):
        if profile.min > reached + 1:
            break
        reached = max(reached, profile.max)
    largest = max(profile.max for profile in profiles)
    if reached < largest:
        raise ConfigError(f"The profiles of {path} leave out batch {reached + 1}, which requests will have; build it "
                          f"with --batch 1:8:{largest}.")


def _require_facts(facts: ArtifactFacts | None, path: Path) -> ArtifactFacts:
    if facts is None:
        raise ArtifactError(f"{path} was not written by dyvit, so its preprocessing and classes are unknown; export it "
                            "from its checkpoint.")
    return facts


SERVED = tuple(suffix for kind in (ONNX, OPENVINO, ENGINE) for suffix in SUFFIXES[kind])
READERS: dict[str | None, Callable[[Path], Servable]] = {
    ONNX: _read_onnx, OPENVINO: _read_openvino, ENGINE: _read_engine}


def check_same_model(servable: Servable, facts: ArtifactFacts, checkpoint: str | Path) -> None:
    """Raises ConfigError if the artifact was not made from this checkpoint."""
    recorded = servable.facts
    counts = facts.prune.counts(facts.model.patches) if facts.prune and not facts.dense else ()
    pairs = [(field.name, getattr(recorded.model, field.name), getattr(facts.model, field.name))
             for field in dataclasses.fields(recorded.model)]
    pairs += [("class_names", recorded.class_names, facts.class_names),
              ("keep_counts", recorded.keep_counts or (), counts)]
    for name, found, expected in pairs:
        if found != expected:
            raise ConfigError(f"{servable.path} was not made from {checkpoint}: its {name} is {found}, and the "
                              f"checkpoint's is {expected}; name the checkpoint that it was made from.")
