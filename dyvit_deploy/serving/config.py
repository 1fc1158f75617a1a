"""How a model is served from a Triton repository."""
from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import ConfigError
from ..settings.fields import JsonConfig, option, switches


@dataclass(frozen=True)
class ServingConfig(JsonConfig):
    """How a model is laid out in a Triton repository; `version` is the number of the version folder."""

    name: str | None = option(None, "For --format triton: the model's name; default: the architecture's.")
    max_batch: int | None = option(None, "For --format triton: largest batch; default: engine's, else 64.")
    instances: int = option(1, "For --format triton: run at once.")
    version: int = option(1, "For --format triton: put a newer version beside the one that is there.",
                          "--model-version")
    engine: str | None = option(None, "For --format triton: serve this engine of the checkpoint.", metavar="PLAN")
    labels: str | None = option(None, "For --format triton: names of the classes: one per line, or JSON.",
                                metavar="FILE")
    orient: bool = option(False, "For --format triton: turn images as their EXIF orientation says.")
    graph: str = switches("onnx", ("onnx", "openvino"), {
        "--onnx": "For --format triton: serve an ONNX graph, the default.",
        "--openvino": "For --format triton: serve an OpenVINO model."}, rival="engine")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,127}", self.name):
            raise ConfigError(f"A model of Triton is named with letters, digits, '_', '-' and '.', not {self.name!r}.")
        for field, most in (("max_batch", 4096), ("instances", 64), ("version", 10**9)):
            value = getattr(self, field)
            if value is not None and not 1 <= value <= most:
                option = {"version": "model-version"}.get(field, field.replace("_", "-"))
                raise ConfigError(f"--{option} is a number from 1 to {most}, not {value}.")

    def require_unset(self) -> None:
        """Raises ConfigError when anything is set: the other formats know none of it."""
        if self != ServingConfig():
            raise ConfigError("--engine, --onnx, --openvino, --name, --max-batch, --instances, --labels, "
                              "--orient and --model-version are for a Triton repository; add --format triton.")


@dataclass(frozen=True)
class ServeConfig(JsonConfig):
    """How a server is started and checked."""

    data: str = option("digits", "Images to send: a folder, or digits.")
    images: int = option(32, "At most this many.", least=1)
    url: str | None = option(None, "Check a server that runs already, at its HTTP port.", metavar="HOST:PORT")
    triton: str | None = option(None, "A tritonserver, or a virtual environment with nvidia-pytriton; default: that of "
                                      "DYVIT_TRITON, or one that is installed.")
    port: int | None = option(None, "First of three ports: HTTP, gRPC, metrics; default: 8000, with --check any.")
