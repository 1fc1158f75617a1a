"""What flows through the inside of a graph on real images, streamed."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.images import Batch, ImageSet, Track, no_track
from ..errors import DataError
from ..graph.read import Graph
from ..runners.ort import OrtRunner

# Images in memory at a time, with all that is watched of them.
BATCH = 4


def stream_activations(graph: Graph, images: ImageSet, tensors: Sequence[str], track: Track[Any] = no_track,
                       what: str = "calibrating") -> Iterator[tuple[Batch, dict[str, NDArray[Any]]]]:
    """Batches of `images`, each with the named `tensors` of the float32 `graph`.

    Raises:
        DataError: NaN or infinity in a tensor; the image and the layer are named.
    """
    with OrtRunner(graph, device="cpu", watch=tensors) as runner:
        for batch in track(images.batches(BATCH), what, -(-len(images) // BATCH)):
            found = {tensor: values for tensor, values in runner.tensors(batch.images).items() if tensor in tensors}
            for tensor, values in found.items():
                if not np.isfinite(values.min()) or not np.isfinite(values.max()):
                    raise DataError(_complaint(graph, tensor, batch, values))
            yield batch, found


def _complaint(graph: Graph, tensor: str, batch: Batch, values: NDArray[Any]) -> str:
    producer = next((n.name for n in graph.structure.graph.node if tensor in n.output), tensor)
    who = f"an image from {batch.names[0]} on"
    # Without a batch dimension, no single image is to blame.
    if values.ndim and len(values) == len(batch.names):
        who = batch.names[int((~np.isfinite(values.reshape(len(values), -1)).all(axis=1)).argmax())]
    return (f"{who} makes {producer} give NaN or infinity, so no range can be found; look at that image, or at the "
            "weights of that layer.")
