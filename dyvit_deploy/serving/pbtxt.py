"""Makes Triton's config.pbtxt of every model in a repository from its artifact.

Configurations are dictionaries with the field names of Triton's ModelConfig; its protobuf class writes and reads them,
so their syntax cannot be wrong.
"""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, reason
from ..graph.read import Tensor
from ..optional import require
from .interface import Servable

Config = dict[str, Any]
TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8", "int64": "TYPE_INT64"}
# The device of the instances, by backend.
KINDS = {"onnxruntime": "KIND_AUTO", "openvino": "KIND_CPU", "tensorrt": "KIND_GPU"}
# The largest batch of graphs, which themselves have no limit.
MAX_BATCH = 64
# Microseconds that a request waits for others to share its batch.
QUEUE_DELAY_US = 1000
# The largest encoded or raw image: 150 MB when decoded.
MAX_PIXELS = 50_000_000
# Threads that decode images, so at most 600 MB of pixels at once.
THREADS = 4
LABELS = "labels.txt"
# Suffixes of the names of the preprocessing model and the ensemble.
PREPROCESS, ENSEMBLE = "-preprocess", "-images"
ENCODED = {"name": "encoded", "data_type": "TYPE_STRING", "dims": [1], "optional": True}
RAW = {"name": "raw", "data_type": "TYPE_UINT8", "dims": [-1, -1, 3], "optional": True}
# A newer version replaces an older one while requests are running.
VERSIONS = {"latest": {"num_versions": 1}}


def core_config(name: str, servable: Servable, max_batch: int, instances: int) -> Config:
    """The configuration of the model itself: input `images`, outputs `logits` and, if the artifact has them, kept
    patches."""
    image, optimized = servable.input, sorted({profile.opt for profile in servable.profiles})
    config: Config = {
        "name": name, "backend": servable.backend, "max_batch_size": max_batch,
        "input": [_tensor(image)], "output": [_tensor(output, LABELS) for output in servable.outputs],
        "version_policy": VERSIONS, "instance_group": [{"count": instances, "kind": KINDS[servable.backend]}],
        "dynamic_batching": {"max_queue_delay_microseconds": QUEUE_DELAY_US},
        "model_warmup": [_warmup(image, batch) for batch in sorted({1, *optimized}) if batch <= max_batch],
    }
    preferred = [batch for batch in sorted({*optimized, *(p.max for p in servable.profiles)}) if 1 < batch <= max_batch]
    if preferred:
        config["dynamic_batching"]["preferred_batch_size"] = preferred
    if servable.profiles:
        config["instance_group"][0]["profile"] = [str(number) for number in range(len(servable.profiles))]
        config["optimization"] = {"cuda": {"graphs": True, "graph_spec": [
            {"batch_size": batch, "input": {image.name: {"dim": list(image.shape[1:])}}}
            for batch in sorted({1, *preferred})]}}
    return config


def preprocess_config(name: str, servable: Servable, max_batch: int, orient: bool) -> Config:
    """The configuration of the model that decodes, resizes and normalises images as recorded in the checkpoint. With
    `orient`, it turns them as their EXIF orientation says."""
    model = servable.facts.model
    spec = {"image_size": list(model.image_size), "preprocess": dataclasses.asdict(model.preprocess), "orient": orient,
            "dtype": servable.input.dtype, "max_pixels": MAX_PIXELS, "threads": THREADS}
    return {
        "name": name, "backend": "python", "max_batch_size": max_batch, "input": [ENCODED, RAW],
        "output": [_tensor(servable.input)], "version_policy": VERSIONS,
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
        "dynamic_batching": {"max_queue_delay_microseconds": QUEUE_DELAY_US},
        "parameters": {"spec": {"string_value": json.dumps(spec)}},
    }


def ensemble_config(name: str, preprocess: str, core: str, servable: Servable, max_batch: int) -> Config:
    """The configuration of the ensemble that runs `preprocess`, then `core`: encoded or raw images in, logits out."""
    names = [output.name for output in servable.outputs]
    return {
        "name": name, "platform": "ensemble", "max_batch_size": max_batch, "input": [ENCODED, RAW],
        "output": [_tensor(output, LABELS) for output in servable.outputs], "version_policy": VERSIONS,
        "ensemble_scheduling": {"step": [
            {"model_name": preprocess, "model_version": -1, "input_map": {"encoded": "encoded", "raw": "raw"},
             "output_map": {"images": "prepared"}},
            {"model_name": core, "model_version": -1, "input_map": {servable.input.name: "prepared"},
             "output_map": dict(zip(names, names))}]},
    }


def router_config(name: str, models: dict[float, str], servables: Sequence[Servable], max_batch: int) -> Config:
    """The configuration of the router, which chooses one of `models` by the keep ratio of a request, and the first one
    by default."""
    first = servables[0]
    # The models keep different numbers of patches.
    outputs = [_tensor(output, LABELS) | ({} if output.name == "logits" else {"dims": [-1]})
               for output in first.outputs]
    return {
        "name": name, "backend": "python", "max_batch_size": max_batch,
        "input": [_tensor(first.input) | {"optional": True}, ENCODED, RAW], "output": outputs,
        "version_policy": VERSIONS, "instance_group": [{"count": 2, "kind": "KIND_CPU"}],
        # Several requests per call, without a delay.
        "dynamic_batching": {},
        "parameters": {"models": {"string_value": json.dumps({f"{ratio:g}": to for ratio, to in models.items()})},
                       "ensemble_suffix": {"string_value": ENSEMBLE}},
    }


def _tensor(tensor: Tensor, labels: str | None = None) -> Config:
    config = {"name": tensor.name, "data_type": TYPES[tensor.dtype], "dims": list(tensor.shape[1:])}
    return config | ({"label_filename": labels} if labels and tensor.name == "logits" else {})


def _warmup(image: Tensor, batch: int) -> Config:
    return {"name": f"batch {batch}", "batch_size": batch, "inputs": {
        image.name: {"data_type": TYPES[image.dtype], "dims": list(image.shape[1:]), "zero_data": True}}}


def _protobuf() -> Any:
    """Triton's ModelConfig class."""
    return require("tritonclient.grpc.model_config_pb2", extra="triton").ModelConfig


def to_pbtxt(config: Config) -> str:
    """The text of a config.pbtxt.

    Raises:
        MissingDependency: tritonclient, which has Triton's protobuf classes, is not installed.
    """
    message = _protobuf()()
    require("google.protobuf.json_format").ParseDict(config, message)
    return str(require("google.protobuf.text_format").MessageToString(message))


def read_pbtxt(path: Path) -> Config:
    """The configuration in a config.pbtxt, in the form of the functions above.

    Raises:
        ArtifactError: the file cannot be read, or is not a model configuration.
    """
    text_format = require("google.protobuf.text_format")
    try:
        message = text_format.Parse(path.read_text("utf-8"), _protobuf()())
    except (text_format.ParseError, OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is no configuration of a Triton model ({reason(error)}); export the repository "
                            "again.") from error
    return normal(message)


def normal(config: Any) -> Config:
    """A configuration, given as dictionary or message, in a canonical form for comparisons."""
    if isinstance(config, dict):
        message = _protobuf()()
        require("google.protobuf.json_format").ParseDict(config, message)
        config = message
    canonical: Config = require("google.protobuf.json_format").MessageToDict(config, preserving_proto_field_name=True)
    return canonical
