"""Forks of a process that stop at chosen writes, for `kills.py`."""
from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events by the index of the path that is written.
EVENTS = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.truncate": 0, "os.link": 1}


class Counter:
    """Counts the write events of this process below `roots`, and sends it `how` at number `fatal` (0: never)."""

    def __init__(self, roots: Iterable[Path], fatal: int, how: signal.Signals) -> None:
        self.roots, self.fatal, self.count, self.process = [f"{root}{os.sep}" for root in roots], fatal, 0, os.getpid()
        self.lock, self.how = threading.RLock(), how
        was = os.fsync

        def sync(number: int) -> None:
            self._event("fsync", os.readlink(f"/proc/self/fd/{number}"))
            was(number)
        os.fsync = sync
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
            self._event(event, arguments[0])
        elif event in EVENTS:
            self._event(event, arguments[EVENTS[event]])

    def _event(self, event: str, path: object) -> None:
        if isinstance(path, int) or os.getpid() != self.process:
            return
        name = os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]
        if not name.startswith(tuple(self.roots)):
            return
        with self.lock:
            self.count += 1
            if self.count == self.fatal:
                self.die(event, name)

    def die(self, event: str, name: str) -> None:
        if event == "fsync" and self.how == signal.SIGKILL:
            # As if it had not been written to its end.
            os.truncate(name, os.path.getsize(name) // 2)
        os.write(2, f"\n{self.how.name} at {self.count}: {event} {name}\n".encode())
        os.kill(self.process, self.how)


class Fork:
    """A fork of this process, in which `work` is called."""

    def __init__(self, work: Callable[..., Any], log: Path, *arguments: Any) -> None:
        self._receiver, sender = multiprocessing.Pipe(duplex=False)
        self.process = os.fork()
        if self.process == 0:
            self._child(sender, work, log, arguments)
        sender.close()

    @staticmethod
    def _child(sender: Any, work: Callable[..., Any], log: Path, arguments: tuple[Any, ...]) -> None:
        code = 1
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        # SystemExit as well: the parent's code must not go on in the child.
        try:
            sender.send(work(*arguments))
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self) -> tuple[int, Any]:
        """Its exit code (negative: the signal), and what `work` returned."""
        result = None
        with contextlib.suppress(EOFError):
            result = self._receiver.recv()
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1]), result


def forked(work: Callable[..., Any], log: Path, *arguments: Any) -> tuple[int, Any]:
    """Calls `work` in a fork, and waits for it."""
    return Fork(work, log, *arguments).wait()
