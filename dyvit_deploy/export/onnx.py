"""Exports a checkpoint to an ONNX graph with a fixed number of tokens per stage."""
from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ..artifacts.facts import METADATA_KEY, ArtifactFacts, library_versions
from ..artifacts.files import check_target, size_mib
from ..config import LoadConfig
from ..errors import ConfigError, ExportError, reason
from ..graph.files import check_pair_target, fits_one_file, write_graph, write_pair
from ..graph.limits import MAX_K
from ..optional import require
from ..settings.tables import Table
from .config import ExportConfig
from .memory import collector_paused

if TYPE_CHECKING:
    from ..model.dynamicvit import DynamicViT

log = logging.getLogger(__name__)
BATCH = "batch"


@dataclass(frozen=True)
class ExportReport:
    """Where the graph was written and what it contains. `size_mib` includes its data file, if it has one."""

    path: str
    facts: ArtifactFacts
    outputs: tuple[str, ...]
    nodes: int
    size_mib: float

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def table(self) -> Table:
        model, parent = self.facts.model, self.facts.parent or {}
        table = Table(title=Text(self.path), title_justify="left", show_header=False)
        table.add_column(style="bold")
        table.add_column()
        shape = [BATCH, *model.image_size, 3] if self.facts.input == "uint8" else [BATCH, 3, *model.image_size]
        for name, value in (
            ("model", model.name), ("weights", f"{parent.get('weights')} of {parent.get('file')}"),
            ("patches kept", " / ".join(map(str, (model.patches, *(self.facts.keep_counts or ()))))),
            ("input", f"images {self.facts.input} [{', '.join(map(str, shape))}]"),
            ("outputs", ", ".join(self.outputs)),
            ("size", f"{self.size_mib:.1f} MiB, {self.nodes} nodes"),
        ):
            # As Text, because brackets would be markup.
            table.add_row(name, Text(value))
        return table


@collector_paused()
def export_onnx(checkpoint: str | os.PathLike[str], path: str | Path, config: ExportConfig = ExportConfig(),
                load: LoadConfig = LoadConfig()) -> ExportReport:
    """Exports `checkpoint` to `path`, atomically; above 2 GiB with a data file, see `graph.files`.

    Args:
        checkpoint: see `load_model`.

    Raises:
        CheckpointError, ConfigError: the checkpoint cannot be opened with these options, or keeps no patches to output.
        ArtifactError: it cannot be written to `path`.
        ExportError: the graph has a fixed batch.
    """
    from ..model.checkpoint import load_model
    from ..model.state import check_finite

    check_target(path)
    model, facts = load_model(checkpoint, load)
    check_finite(model, os.fspath(checkpoint))
    if config.with_tokens and facts.prune and not facts.prune.keeps_patches:
        raise ConfigError("Structural pooling keeps no patch of the image; leave out --with-tokens.")
    return export_model(model, facts, path, config)


def export_model(model: DynamicViT, facts: ArtifactFacts, path: str | Path,
                 config: ExportConfig = ExportConfig()) -> ExportReport:
    """Exports a model in memory; see `export_onnx`."""
    onnx = require("onnx")
    check_k(model.keep_counts, model.config.patches, config)
    one_file = fits_one_file(sum(p.numel() * p.element_size() for p in model.parameters()))
    if not one_file:
        check_pair_target(path)
    names = ["logits", *(f"kept_{s}" for s in range(len(model.keep_counts)) if config.with_tokens)]
    traced, forms = _trace(model, names, config.for_target("cpu"))
    _check_interface(traced.graph, names)
    facts = dataclasses.replace(
        facts, precision="float32", input=config.input, keep_counts=model.keep_counts, forms=forms,
        versions=library_versions("torch", "timm", "onnx", "onnxscript"))
    traced.metadata_props.clear()
    traced.metadata_props[METADATA_KEY] = facts.to_json()
    traced.producer_name, traced.producer_version = "dyvit-deploy", library_versions()["dyvit-deploy"]
    nodes = len(traced.graph)
    if one_file:
        proto = require("onnx_ir").to_proto(traced)
        onnx.checker.check_model(proto)
        write_graph(proto, path)
    # A ModelProto would be one more copy of the weights.
    else:
        write_pair(traced, path, check=True)
    return ExportReport(str(path), facts, tuple(names), nodes, size_mib(Path(path)))


def check_k(counts: tuple[int, ...], patches: int, config: ExportConfig) -> None:
    """Raises ConfigError when a TopK has a larger K than TensorRT can run."""
    for stage, (before, keep) in enumerate(zip((patches, *counts), counts)):
        if MAX_K < keep < before and not config.allow_large_k:
            raise ConfigError(f"Stage {stage} keeps {keep} tokens, and TensorRT's TopK takes at most "
                              f"{MAX_K}; lower the keep ratio or image size, or pass --allow-large-k "
                              "when the graph is for another runtime.")


def _trace(model: DynamicViT, names: list[str], config: ExportConfig) -> tuple[Any, tuple[str, ...]]:
    """`model` as an onnx-ir model, and the names of the inference forms in it."""
    torch = require("torch")
    from ..model.forms import inference_form
    from .inference import InferenceGraph
    from .rewrites import rewrite
    from .score_path import check_score_path

    model, forms = inference_form(model, config.left_out)
    height, width = model.config.image_size
    # Batch 2: an example batch of 1 would silently become a fixed one.
    example = (torch.zeros(2, height, width, 3, dtype=torch.uint8) if config.input == "uint8"
               else torch.zeros(2, 3, height, width))
    graph = InferenceGraph(model, config).eval()
    # Without gradients there is less to trace.
    with warnings.catch_warnings(), _quiet(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                graph, (example.to(next(model.parameters()).device),), dynamo=True, opset_version=config.opset,
                dynamic_shapes=({0: torch.export.Dim(BATCH)},), input_names=["images"], output_names=names,
                verbose=False, external_data=False)
        except (torch.onnx.OnnxExporterError, torch._dynamo.exc.UserError, RuntimeError) as error:
            raise ExportError(f"torch.onnx could not export {model.config.name}: {reason(error)}. "
                              "Try another torch version, or report the model's name to us.") from error
    ir_model, changed = rewrite(program.model, config.gather)
    check_score_path(ir_model.graph, model)
    log.info("forms and rewrites that applied: %s", ", ".join((*forms, *changed)) or "none")
    return ir_model, forms


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's loggers, which report progress as warnings that no user can act on."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _check_interface(graph: Any, names: list[str]) -> None:
    """Raises ExportError unless batch is symbolic everywhere, all else is fixed and no log-softmax is left."""
    values = [*graph.inputs, *graph.outputs]
    if [v.name for v in values] != ["images", *names]:
        raise ExportError(f"The graph has {[v.name for v in values]}, not {['images', *names]}; report this to us.")
    for value in values:
        first, *rest = value.shape
        if isinstance(first, int) or first.value != BATCH:
            raise ExportError(f"The batch of {value.name!r} was baked in as {first}; this model computes "
                              "with its batch size, which a graph for any batch cannot.")
        if not all(isinstance(dim, int) for dim in rest):
            raise ExportError(f"{value.name!r} has a free dimension besides the batch; report this to us.")
    softmaxes = [node.name for node in graph if node.op_type == "LogSoftmax"]
    if softmaxes:
        raise ExportError(f"The graph still computes {softmaxes[0]}; report this to us.")
