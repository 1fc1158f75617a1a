"""What Windows does not have. `tests/test_structure.py` keeps it out of all other modules."""
from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Collection


def allowed_cores() -> set[int] | None:
    """The cores that this process may use; None where the system does not bind processes to cores."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def use_cores(cores: Collection[int]) -> None:
    """Binds this thread to `cores`, some of `allowed_cores`."""
    os.sched_setaffinity(0, cores)


def peak_bytes() -> int | None:
    """Peak resident memory of this process, on macOS; None elsewhere."""
    if sys.platform != "darwin":
        return None
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a process that leads a session of its own, with all processes that it started; on Windows, it alone."""
    if not hasattr(os, "killpg"):
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
