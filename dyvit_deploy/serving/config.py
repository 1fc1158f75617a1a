"""How a model is served from a Triton repository."""
from __future__ import annotations

import re
from dataclasses import dataclass

from ..config import JsonConfig, check_choice
from ..errors import ConfigError


@dataclass(frozen=True)
class ServingConfig(JsonConfig):
    """How a model stands in a Triton repository.

    `name` None is the model's own; `max_batch` None is the most that an engine runs, and 64 for graphs. `instances`
    run at once; `version` is the number of the version folder. `engine` is a plan to serve, None for a graph exported
    as `graph`, "onnx" or "openvino".
    """

    name: str | None = None
    max_batch: int | None = None
    instances: int = 1
    version: int = 1
    engine: str | None = None
    graph: str = "onnx"

    def __post_init__(self) -> None:
        check_choice("graph to serve", self.graph, ("onnx", "openvino"))
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
            raise ConfigError("--engine, --onnx, --openvino, --name, --max-batch, --instances and --model-version are "
                              "for a Triton repository; add --format triton.")
