"""Lowers a float32 graph to the requested precision, and reports what stayed in a higher one."""
from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

from ..config import HALF, QUANTIZED
from ..data.images import ImageSet, Track, no_track
from ..errors import ExportError, reason
from ..graph.files import fits_one_file, weight_bytes, write_graph
from ..graph.names import on_score_path
from ..graph.read import Graph, matrix_products, product_precisions, weights_as_inputs
from ..optional import require
from ..runners.ort import OrtRunner
from .half import KeptNode, near_overflow, to_half
from .policy import quantizable
from .quantize import quantize_cpu, quantize_tensorrt
from .ranges import Ranges
from .targets import ResolvedTarget


class Lowered(NamedTuple):
    """A lowered graph. `precisions` are those of its products, by node; `kept` are the products that the policy would
    lower but that stayed in a higher precision."""

    proto: Any
    precisions: dict[str, str]
    kept: tuple[str, ...]


class Lowering:
    """Makes lowered graphs of one float32 graph; what they have in common is computed once.

    Args:
        graph: the float32 graph. Its file must exist too, because ModelOpt reads it; drafts are written beside it.
        images: real images; they are searched for overflow in float16, and ModelOpt runs the first of them.
        ranges: the ranges of activations, needed for int8 and float8.
        attention: also quantize the products inside attention.
    """

    def __init__(self, graph: Graph, resolved: ResolvedTarget, images: ImageSet, ranges: Ranges | None,
                 attention: bool = False, track: Track[Any] = no_track) -> None:
        self._graph, self._resolved, self._images, self._ranges = graph, resolved, images, ranges
        self._attention = attention
        self.float32_nodes: tuple[KeptNode, ...] = ()
        # The graph that is quantized: float32, or for a `rest` of float16 a copy in float16.
        self._base = graph
        quantized = resolved.precision in QUANTIZED
        if "float16" in (resolved.precision, resolved.rest if quantized else None):
            self.float32_nodes = near_overflow(graph, images, track)
        if quantized and resolved.rest == "float16":
            path = graph.path.with_name("rest.onnx")
            self._base = Graph(path, to_half(graph.path, resolved.rest, images, self.float32_nodes, resolved.io))
            write_graph(self._base.proto, path)

    def lower(self, keep: Collection[str] = ()) -> Lowered:
        """The graph in the chosen precision, except for the products named in `keep`.

        Raises:
            ExportError: a product is not in the precision that it should be in.
        """
        precision, target = self._resolved.precision, self._resolved.target
        if precision in HALF and self._resolved.format == "openvino":
            # OpenVINO lowers it when the model is compiled.
            proto = self._graph.copy()
        elif precision in HALF:
            proto = to_half(self._graph.path, precision, self._images, self.float32_nodes, self._resolved.io, keep)
        else:
            assert self._ranges is not None
            products = [p for p in quantizable(self._graph.structure, self._attention) if p.name not in keep]
            # The quantizers take an empty list for all nodes.
            if not products:
                proto = self._base.copy()
            elif target == "cpu":
                proto = quantize_cpu(self._graph, self._ranges, products)
            else:
                proto = quantize_tensorrt(self._base, precision, self._ranges, products, self._feed)
        found = product_precisions(proto)
        return Lowered(proto, found, self._check(proto, found, keep))

    @functools.cached_property
    def _feed(self) -> NDArray[Any]:
        """Two images as the input of the graph that is quantized."""
        with OrtRunner(self._base, device="cpu") as runner:
            return runner.prepare(next(self._images.batches(2)).images)

    def _check(self, proto: Any, found: Mapping[str, str], keep: Collection[str]) -> tuple[str, ...]:
        """The products that should be in the lower precision but are not; ExportError if none is in it, or a product of
        keep scores is.

        `found` are the precisions of `proto`.
        """
        onnx = require("onnx")
        try:
            onnx.checker.check_model(proto if fits_one_file(weight_bytes(proto)) else weights_as_inputs(proto))
        except onnx.checker.ValidationError as error:
            raise ExportError(f"The lowered graph is not valid ONNX ({reason(error)}); report this to us."
                              ) from error
        precision = self._resolved.precision
        for product in matrix_products(self._graph.structure):
            if on_score_path(product.node) and found.get(product.node) != "float32":
                raise ExportError(f"{product.node} does not compute scores in float32, but in "
                                  f"{found.get(product.node, 'nodes of other names')}; report this to us.")
        if precision == "bfloat16" and self._resolved.format == "openvino":
            return ()
        source = self._graph.structure
        wanted = (quantizable(source, self._attention) if precision in QUANTIZED
                  else [p for p in quantizable(source, True) if not on_score_path(p.node)])
        higher = [p for p in wanted if found.get(p.node) != precision]
        if len(higher) == len(wanted) and not keep:
            raise ExportError(f"None of the {len(wanted)} products came out in {precision}: {wanted[0].node} is "
                              f"{found.get(wanted[0].node)}; report this to us.")
        return tuple(p.name for p in higher)
