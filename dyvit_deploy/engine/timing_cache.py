"""A timing cache that several builds share: locked while it is read and written, made anew when damaged."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..artifacts.files import atomic_write, check_target
from ..errors import ArtifactError
from ..optional import require
from .library import BuilderLibrary

DAMAGED = "Failed to deserialize timing cache"


def _lock(path: Path) -> Any:
    return require("filelock").FileLock(f"{path}.lock")


def load_timing_cache(library: BuilderLibrary, config: Any, path: Path) -> str | None:
    """Gives the builder's `config` the cache in `path`, an empty one where there is none.

    Returns:
        What a user should know: the file was damaged, or of another library or GPU, and is made anew.
    """
    check_target(path)
    try:
        with _lock(path):
            content = path.read_bytes() if path.is_file() else b""
    except OSError as error:
        raise ArtifactError(f"The timing cache {path} cannot be read ({error.strerror or error}); choose another file."
                            ) from error
    before = len(library.logger.warnings)
    cache = config.create_timing_cache(content)
    damaged = cache is None or any(DAMAGED in message for message in library.logger.warnings[before:])
    if damaged:
        cache = config.create_timing_cache(b"")
    fits = config.set_timing_cache(cache, False)
    if not fits:
        config.set_timing_cache(config.create_timing_cache(b""), False)
    if not damaged and fits:
        return None
    why = "is damaged" if damaged else "is of another GPU or version"
    kept = path.with_name(path.name + ".old")
    os.replace(path, kept)                                                 # it may be no cache at all
    return f"The timing cache {path} {why}; it is made anew, and the old file is now {kept.name}."


def save_timing_cache(config: Any, path: Path) -> None:
    """Adds what this build timed to `path`; what another build wrote meanwhile stays."""
    cache = config.get_timing_cache()
    if cache is None:
        return
    with _lock(path):
        if path.is_file() and (earlier := config.create_timing_cache(path.read_bytes())) is not None:
            cache.combine(earlier, False)                                  # one of another GPU is left out
        with atomic_write(path) as temporary:
            temporary.write_bytes(bytes(cache.serialize()))
