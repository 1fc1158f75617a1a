"""Describes an artifact: architecture, pruning, interface, provenance."""
from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text

from ..artifacts.facts import ArtifactFacts
from ..artifacts.files import is_timm, native_path, require_source, sha256, size_mib
from ..artifacts.kinds import CHECKPOINT, ENGINE, ONNX, OPENVINO, kind_of
from ..config import LoadConfig, PruneConfig
from ..engine.build import describe
from ..engine.layers import to_rows
from ..engine.preflight import preflight
from ..engine.sidecar import EngineFacts, read_sidecar, sidecar_path
from ..errors import ArtifactError, BackendError, CheckpointError, ConfigError, reason
from ..graph.files import check_data
from ..graph.read import graph_facts, load_graph, product_precisions, summary
from ..optional import require
from ..runners.fusions import onnxruntime_fusions
from ..runners.open import fixed_at_export, unknown_kind
from ..runners.ort import failures
from ..settings.tables import Table

if TYPE_CHECKING:
    from ..model.macs import Cost


@dataclass(frozen=True)
class InspectReport:
    """`facts` is None for files that dyvit did not write; `details` depend on the kind of file; `engine` is the sidecar
    of an engine plan.

    `gmacs` are 1e9 multiply-accumulates for one image, `keep_counts` the kept patch tokens per stage.
    """

    KIND: ClassVar[str] = "inspect"

    path: str
    kind: str
    size_mib: float
    sha256: str
    facts: ArtifactFacts | None
    keep_counts: tuple[int, ...]
    gmacs: float | None
    parameters: int | None
    details: dict[str, Any]
    engine: EngineFacts | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def table(self) -> Table:
        """The rows, as a table of two columns."""
        table = Table(title=Text(f"{self.path} ({self.kind})"), show_header=False, title_justify="left")
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in self.rows().items():
            if value not in (None, "", (), [], {}):
                # As Text, because brackets in a string would be read as markup.
                table.add_row(name, Text(str(value)))
        return table

    def rows(self) -> dict[str, Any]:
        """Label and value of each row, as text; values that the file does not have are empty."""
        rows: dict[str, Any] = {"size": f"{self.size_mib:.1f} MiB", "sha256": self.sha256}
        if facts := self.facts:
            model, prune = facts.model, facts.prune
            rows |= {
                "model": f"{model.name}: {model.depth} blocks, width {model.width}, {model.heads} heads, "
                         f"{model.classes} classes",
                "image": f"{model.image_size[0]} x {model.image_size[1]} px, {model.grid[0]} x {model.grid[1]} patches "
                         f"of {model.patch_size} px",
                "preprocessing": _preprocessing(facts),
                "stages": f"before blocks {', '.join(map(str, prune.stages))}" if prune else "none, dense",
                "selector": prune and prune.selector + (", dropped tokens fused" if prune.fuse else ""),
                "trained for": facts.elastic and "keep ratios {:g} to {:g}".format(*facts.elastic),
                "kept patches": " / ".join(map(str, (model.patches, *self.keep_counts))),
                "rewrites": None if self.kind == "checkpoint" else ", ".join(facts.forms) or "none",
                "precision": facts.precision, "lowered": _pairs(_lowered(facts)),
                "compared with its checkpoint": facts.gate,
                "class names": ", ".join(facts.class_names[:10]) + (" ..." if len(facts.class_names) > 10 else "")
                if facts.class_names else None,
                "assumed": "; ".join(facts.assumed), "adapted": "; ".join(facts.adapted),
                "parent": _pairs(facts.parent), "versions": _pairs(facts.versions),
                "training": _pairs(_brief(facts.training)),
            }
        else:
            rows["written by"] = "not dyvit: model, pruning and preprocessing are unknown"
        if self.gmacs is not None:
            rows["cost"] = f"{self.gmacs:.3f} GMACs an image, {(self.parameters or 0) / 1e6:.2f} M parameters"
        return rows | self.details


def _preprocessing(facts: ArtifactFacts) -> str:
    model, steps = facts.model, facts.model.preprocess
    resize = (f"{steps.resize} px, centre crop" if steps.short_side else
              f"resize to {model.image_size[0]} x {model.image_size[1]}")
    inside = ", inside the graph" if facts.input == "uint8" else ""
    return f"{resize} ({steps.interpolation}), mean {list(steps.mean)}, std {list(steps.std)}{inside}"


def _pairs(values: dict[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (values or {}).items() if value is not None)


def _lowered(facts: ArtifactFacts) -> dict[str, Any]:
    """How the precision was lowered, with the labels of the table."""
    values = dict(facts.lowered or {})
    ranges, kept = values.pop("ranges", None), values.pop("kept", None)
    if ranges:
        values["ranges"] = f"by {ranges['method']} over {ranges['images']} images ({ranges['sha256'][:12]})"
    return values | ({"kept higher": " ".join(kept)} if kept else {})


def _brief(training: dict[str, Any] | None) -> dict[str, Any]:
    """The training facts without recipe and versions, which only the JSON shows."""
    return {k: v for k, v in (training or {}).items() if not isinstance(v, dict)}


def inspect_artifact(path: str | Path, load: LoadConfig = LoadConfig()) -> InspectReport:
    """Describes the artifact `path`; a checkpoint as `load` opens it, apart from the schedule.

    Graphs are compiled, but not run; an engine plan is not loaded, because its sidecar describes it.

    Raises:
        ArtifactError: the file is missing, damaged, or of an unknown kind.
        ConfigError: options for a file that was fixed when it was exported.
    """
    path = require_source(path)
    if kind_of(path) != CHECKPOINT and load != LoadConfig():
        raise fixed_at_export(path)
    readers: dict[str | None, Callable[[Path], InspectReport]] = {
        CHECKPOINT: partial(_inspect_checkpoint, load=load), ONNX: _inspect_onnx, OPENVINO: _inspect_openvino,
        ENGINE: _inspect_engine}
    kind = kind_of(path)
    if kind not in readers or is_timm(path):
        raise unknown_kind(path)
    return readers[kind](path)


def _inspect_checkpoint(path: Path, load: LoadConfig) -> InspectReport:
    from ..model import checkpoint
    from ..model.state import not_finite

    raw = checkpoint.read_checkpoint(path, load.weights)
    details: dict[str, Any] = {"tensors": len(raw.state), "weights taken": raw.weights,
                               "predictors": checkpoint.count_predictors(raw.state)}
    if diverged := not_finite(raw.state):
        details["NaN or infinite"] = f"{len(diverged)} tensors, the first {diverged[0]}"
    try:
        facts: ArtifactFacts | None = checkpoint.identified_facts(raw, load)
    # The architecture may be unknown without --model.
    except (CheckpointError, ConfigError) as error:
        facts, details["architecture"] = None, str(error)
    return _report(path, "checkpoint", facts, details, sum(t.numel() for t in raw.state.values()))


def _inspect_onnx(path: Path) -> InspectReport:
    onnx = require("onnx")
    proto = load_graph(path, weights=False)
    facts = graph_facts(proto, str(path))
    try:
        # Checked by path, because the weights may be in a file beside it.
        onnx.checker.check_model(native_path(path.resolve()))
    except onnx.checker.ValidationError as error:
        raise ArtifactError(f"{path} is not a whole ONNX file ({reason(error)}); "
                            "make or copy it again.") from error
    operators = collections.Counter(node.op_type for node in proto.graph.node)
    beside = check_data(path, proto)
    details = {
        "inputs": "; ".join(_value(v) for v in proto.graph.input),
        "outputs": "; ".join(_value(v) for v in proto.graph.output),
        "products": _counts(summary(product_precisions(proto).values())) if facts else None,
        "opset": ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in proto.opset_import),
        "nodes": f"{len(proto.graph.node)}: " + _counts(dict(operators.most_common())),
        "weights in": ", ".join(file.name for file in beside) or None,
    }
    if facts and (facts.lowered or {}).get("target") != "tensorrt":
        # ONNX Runtime may have no kernels for the precision.
        with contextlib.suppress(*failures()):
            details["in ONNX Runtime"] = onnxruntime_fusions(path).summary(facts.model.depth)
    size = sum(file.stat().st_size for file in (path, *beside)) / 2**20
    return dataclasses.replace(_report(path, "ONNX", facts, details, None), size_mib=size)


def _inspect_openvino(path: Path) -> InspectReport:
    from ..runners.openvino import OpenVINORunner, read_openvino

    _, facts = read_openvino(path)
    try:
        with OpenVINORunner(path) as runner:
            shape = ", ".join("any" if side is None else str(side) for side in runner.input.shape)
            details = {"inputs": f"{runner.input.name} {runner.input.dtype} [{shape}]",
                       "products as compiled here": _counts(runner.compiled_precisions()),
                       "as compiled here": runner.fusions().summary(facts.model.depth) if facts else None}
    # This CPU may not support the precision.
    except BackendError as error:
        details = {"here": str(error)}
    return _report(path, "OpenVINO", facts, details, None)


def _inspect_engine(path: Path) -> InspectReport:
    """Describes a plan by its sidecar; the plan itself contains native code and is not loaded."""
    here = preflight(path)
    # The sidecar of an altered plan describes another plan.
    engine = None if here.altered else read_sidecar(path)
    loads = {"here": "should load" if here else f"will not load: {', and '.join(here.problems)}"}
    if engine is None:
        loads = {"here": "should load, with --trust"} if here else loads
        known = here.built | {"described by": f"its first bytes only; {sidecar_path(path).name} is "
                                               f"{'of another plan' if here.altered else 'missing'}"}
        return _report(path, "engine plan", None, known | loads, None)
    rows = to_rows(engine.products, engine.fused_attention)
    details = {**describe(engine), "source": _pairs(engine.source), "layers": len(engine.layers), **rows, **loads,
               "rebuild": engine.rebuild, "built with": _pairs(engine.versions)}
    report = _report(path, "engine plan", engine.model, details, None)
    return dataclasses.replace(report, engine=engine)


def _counts(values: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in values.items())


def _value(value: Any) -> str:
    onnx = require("onnx")
    if not value.type.HasField("tensor_type"):
        return f"{value.name} {value.type.WhichOneof('value')}"
    tensor = value.type.tensor_type
    dims = ", ".join(d.dim_param or str(d.dim_value) for d in tensor.shape.dim)
    return f"{value.name} {onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)} [{dims}]"


def _cost(path: Path, facts: ArtifactFacts) -> Cost:
    from ..model.macs import count_costs

    try:
        return count_costs(facts.model, [facts.prune], facts.forms)[0]
    except ConfigError as error:
        raise ArtifactError(f"The dyvit metadata in {path} describes no model ({reason(error)}); export it again."
                            ) from error


def _report(path: Path, kind: str, facts: ArtifactFacts | None, details: dict[str, Any],
            parameters: int | None) -> InspectReport:
    prune: PruneConfig | None = facts.prune if facts else None
    counts = prune.counts(facts.model.patches) if facts and prune else ()
    cost = _cost(path, facts) if facts else None
    return InspectReport(str(path), kind, size_mib(path), sha256(path), facts, counts,
                         cost.gmacs if cost else None, cost.parameters if cost else parameters, details)
