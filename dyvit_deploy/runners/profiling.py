"""How long each layer of a compiled graph takes, measured by the runtimes' own profilers."""
from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BackendError

WARMUP = 3
# The suffix that ONNX Runtime appends to a node's name in its profile.
KERNEL = "_kernel_time"


class LayerTime(NamedTuple):
    """One layer as the runtime runs it: its `name` in the runtime, its `operator`, and its median time in ms."""

    name: str
    operator: str
    ms: float


def medians(events: Iterable[tuple[str, str, float]]) -> list[LayerTime]:
    """The median time of each layer in (name, operator, ms) events, in the order in which the layers first ran."""
    times: dict[tuple[str, str], list[float]] = {}
    for name, operator, ms in events:
        times.setdefault((name, operator), []).append(ms)
    return [LayerTime(name, operator, statistics.median(all_ms)) for (name, operator), all_ms in times.items()]


def onnxruntime_layers(session: Any, feed: dict[str, Any], runs: int) -> list[LayerTime]:
    """The times of the nodes of the optimized graph over `runs` runs on `feed`; `session` has profiling enabled."""
    for _ in range(WARMUP + runs):
        session.run(None, feed)
    try:
        events = json.loads(Path(session.end_profiling()).read_text())
    # The library does not report a profile that it could not write.
    except (OSError, ValueError) as error:
        raise BackendError("ONNX Runtime could not write its profile; free space, or set TMPDIR to a folder on another "
                           "disk.") from error
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(KERNEL)]
    # Every run has the same number of events; those of the warm-up are dropped.
    nodes = nodes[len(nodes) * WARMUP // (WARMUP + runs):]
    return medians((e["name"].removesuffix(KERNEL), e["args"]["op_name"], e["dur"] / 1e3) for e in nodes)


def openvino_layers(compiled: Any, feed: dict[Any, Any], runs: int) -> list[LayerTime]:
    """The times of the layers of `compiled`, a model compiled with PERF_COUNT, over `runs` runs on `feed`.

    Layers that were merged into another one do not run and are left out.
    """
    request = compiled.create_infer_request()
    events: list[tuple[str, str, float]] = []
    for run in range(WARMUP + runs):
        request.infer(feed, share_inputs=True)
        if run >= WARMUP:
            events += [(layer.node_name, layer.node_type, layer.real_time.total_seconds() * 1e3)
                       for layer in request.get_profiling_info() if layer.status == layer.Status.EXECUTED]
    return medians(events)
