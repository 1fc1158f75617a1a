"""Deserializes a plan to an engine, for the builder, the runner and refit."""
from __future__ import annotations

from typing import Any, NamedTuple

from ..errors import BackendError
from .library import BuilderLibrary
from .network import last


class Loaded(NamedTuple):
    """An engine, and the runtime that must outlive it."""

    runtime: Any
    engine: Any


def load_engine(library: BuilderLibrary, plan: Any, name: str, host_code: bool = False,
                rebuild: str | None = None) -> Loaded:
    """Deserializes `plan`, the bytes of the file called `name`.

    Args:
        host_code: permits the CPU code that version-compatible plans contain; TensorRT refuses it by default.
        rebuild: the command that builds the plan again, for the error message.

    Raises:
        BackendError: the library refuses the plan, or the GPU runs out of memory.
    """
    runtime = library.trt.Runtime(library.logger)
    if host_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        message = last(library.logger.errors)
        if "out of memory" in message.lower() or "outofmemory" in message.lower():
            raise BackendError(f"The GPU's memory does not suffice to load {name} ({message}); free some, or build it "
                               "with a smaller largest batch.")
        again = f": {rebuild}" if rebuild else (
            ", or pass --trust when it is version-compatible and you know where it comes from")
        raise BackendError(f"{library.spec.name} {library.version} cannot load {name} ({message}); build it again on "
                           f"this machine{again}.")
    return Loaded(runtime, engine)
