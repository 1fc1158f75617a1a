"""A timing cache that several builds can share: locked during reads and writes, replaced if damaged."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..artifacts.files import atomic_write, check_target
from ..artifacts.locks import writing
from ..errors import ArtifactError
from .library import BuilderLibrary

DAMAGED = "Failed to deserialize timing cache"


def load_timing_cache(library: BuilderLibrary, config: Any, path: Path) -> str | None:
    """Gives the builder's `config` the cache in `path`, or an empty one if there is no such file.

    Returns:
        A warning if the file is damaged, or of another library or GPU, and is replaced; else None.
    """
    check_target(path)
    with writing(path):
        content = _read(path)
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
    with writing(path):
        # Another build may have replaced it in the meantime; what it wrote is kept.
        if path.is_file() and _read(path) == content:
            # Renamed, not deleted, because it may not be a timing cache at all.
            os.replace(path, kept)
    return f"The timing cache {path} {why}; it is replaced, and the old file is now {kept.name}."


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.is_file() else b""
    except OSError as error:
        raise ArtifactError(f"The timing cache {path} cannot be read ({error.strerror or error}); choose another file."
                            ) from error


def save_timing_cache(config: Any, path: Path) -> None:
    """Adds the timings of this build to `path`, and keeps those that another build wrote meanwhile."""
    cache = config.get_timing_cache()
    if cache is None:
        return
    with writing(path):
        if path.is_file() and (earlier := config.create_timing_cache(_read(path))) is not None:
            # The library ignores the timings of another GPU.
            cache.combine(earlier, False)
        with atomic_write(path) as temporary:
            temporary.write_bytes(bytes(cache.serialize()))
