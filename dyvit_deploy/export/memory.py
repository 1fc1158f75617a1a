"""How an export uses memory."""
from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pauses Python's cyclic garbage collector, where it is on.

    Importing torch and exporting with it make millions of small objects that all stay in use until the graph is
    done. Searching them for garbage again and again takes a tenth of an export's time.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
