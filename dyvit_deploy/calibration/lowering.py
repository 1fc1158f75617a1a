"""Lowers a float32 graph to the precision that was chosen, and says what stayed higher."""
from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from ..config import HALF, QUANTIZED
from ..data.images import ImageSet, Track, no_track
from ..errors import ExportError, reason
from ..graph.names import on_score_path
from ..graph.read import load_graph, product_precisions
from ..optional import require
from ..runners.ort import OrtRunner
from .half import KeptNode, near_overflow, to_half
from .policy import quantizable
from .quantize import quantize_cpu, quantize_tensorrt
from .ranges import Ranges
from .targets import ResolvedTarget


class Lowered(NamedTuple):
    """proto: the lowered ModelProto. kept: products left in higher precision against the policy's will."""

    proto: Any
    kept: tuple[str, ...]


class Lowering:
    """Makes lowered graphs of one float32 file; what they share is computed once.

    Args:
        path: the float32 file; drafts go beside it.
        images: real ones, for overflow and for ModelOpt to look at.
        ranges: for int8 and float8.
        io: "float16" makes float images and logits float16.
        attention: also quantize the products inside attention.
    """

    def __init__(self, path: Path, choice: ResolvedTarget, images: ImageSet, ranges: Ranges | None, io: str = "float32",
                 attention: bool = False, track: Track[Any] = no_track) -> None:
        self._path, self._choice, self._images, self._ranges = path, choice, images, ranges
        self._io, self._attention = io, attention
        self.raised: tuple[KeptNode, ...] = ()
        self._base = path
        quantized = choice.precision in QUANTIZED
        if "float16" in (choice.precision, choice.rest if quantized else None):
            self.raised = near_overflow(path, images, track)
        if quantized and choice.rest == "float16":
            self._base = path.with_name("rest.onnx")
            require("onnx").save(to_half(path, choice.rest, images, self.raised, self._io), str(self._base))

    def lower(self, keep: Collection[str] = ()) -> Lowered:
        """The graph in the chosen precision, except for the products named in `keep`.

        Raises:
            ExportError: a product is not in the precision that it should be in.
        """
        precision, target = self._choice.precision, self._choice.target
        if precision in HALF and self._choice.format == "openvino":
            proto = load_graph(self._path)                                 # the runtime lowers it, by a hint
        elif precision in HALF:
            proto = to_half(self._path, precision, self._images, self.raised, self._io, keep)
        else:
            assert self._ranges is not None
            products = [p for p in quantizable(load_graph(self._path), self._attention) if p.name not in keep]
            if target == "cpu":
                proto = quantize_cpu(self._path, self._ranges, products)
            else:
                with OrtRunner(self._base, device="cpu") as runner:
                    feed = runner.prepare(next(self._images.batches(2)).images)
                proto = quantize_tensorrt(self._base, precision, self._ranges, products, feed)
        return Lowered(proto, self._check(proto, keep))

    def _check(self, proto: Any, keep: Collection[str]) -> tuple[str, ...]:
        """What should be in the lower precision and is not; ExportError when nothing is."""
        onnx = require("onnx")
        try:
            onnx.checker.check_model(proto)
        except onnx.checker.ValidationError as error:
            raise ExportError(f"The lowered graph is not valid ONNX ({reason(error)}); report this to us."
                              ) from error
        precision = self._choice.precision
        if precision == "bfloat16" and self._choice.format == "openvino":
            return ()
        found = product_precisions(proto)
        source = load_graph(self._path)
        wanted = (quantizable(source, self._attention) if precision in QUANTIZED
                  else [p for p in quantizable(source, True) if not on_score_path(p.node)])
        higher = [p for p in wanted if found.get(p.node) != precision]
        if len(higher) == len(wanted) and not keep:
            raise ExportError(f"None of the {len(wanted)} products came out in {precision}: {wanted[0].node} is "
                              f"{found.get(wanted[0].node)}; report this to us.")
        return tuple(p.name for p in higher)
