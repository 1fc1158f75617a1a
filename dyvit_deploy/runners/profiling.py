"""How long each layer of a compiled graph takes, as the runtimes' own profilers tell."""
from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BackendError

WARMUP = 3
KERNEL = "_kernel_time"                     # what ONNX Runtime appends to the name of a node's event


class LayerTime(NamedTuple):
    """One layer as the runtime runs it: its `name` there, its `operator`, and the median of its milliseconds."""

    name: str
    operator: str
    ms: float


def medians(events: Iterable[tuple[str, str, float]]) -> list[LayerTime]:
    """One entry per layer of (name, operator, ms) events, in the order in which they first ran."""
    times: dict[tuple[str, str], list[float]] = {}
    for name, operator, ms in events:
        times.setdefault((name, operator), []).append(ms)
    return [LayerTime(name, operator, statistics.median(all_ms)) for (name, operator), all_ms in times.items()]


def onnxruntime_layers(session: Any, feed: dict[str, Any], runs: int) -> list[LayerTime]:
    """The nodes of the optimized graph of `session`, which was opened to profile, over `runs` runs on `feed`."""
    for _ in range(WARMUP + runs):
        session.run(None, feed)
    try:
        events = json.loads(Path(session.end_profiling()).read_text())
    except (OSError, ValueError) as error:                                 # the library does not say that it failed
        raise BackendError("ONNX Runtime could not write its profile; free space, or set TMPDIR to a folder on another "
                           "disk.") from error
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(KERNEL)]
    nodes = nodes[len(nodes) * WARMUP // (WARMUP + runs):]                 # every run has the same number
    return medians((e["name"].removesuffix(KERNEL), e["args"]["op_name"], e["dur"] / 1e3) for e in nodes)


def openvino_layers(compiled: Any, feed: dict[Any, Any], runs: int) -> list[LayerTime]:
    """The layers of `compiled`, which was compiled with PERF_COUNT, over `runs` runs on `feed`.

    A layer that was merged into another one does not run and is left out.
    """
    request = compiled.create_infer_request()
    found: list[tuple[str, str, float]] = []
    for run in range(WARMUP + runs):
        request.infer(feed, share_inputs=True)
        if run >= WARMUP:
            found += [(layer.node_name, layer.node_type, layer.real_time.total_seconds() * 1e3)
                      for layer in request.get_profiling_info() if layer.status == layer.Status.EXECUTED]
    return medians(found)
