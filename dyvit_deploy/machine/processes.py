"""Processes that torchrun or accelerate started for one job: their ranks, their share of the machine, their exchange.

The ranks come from the environment, without torch: `dyvit --help` and every command ask for them. They count only
beside the variable that torchrun itself sets: RANK and WORLD_SIZE alone may be left over from another job.
"""
from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import BackendError, reason
from ..optional import require

# Set by torchrun in every process that it starts; `accelerate launch` starts torchrun.
STARTED_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"
# The other variables that libraries read a group of processes from. NODE_RANK is Lightning's own.
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
         "ROLE_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def in_group() -> bool:
    """True in a process that torchrun started."""
    return STARTED_BY_TORCHRUN in os.environ


def leave_group() -> None:
    """Removes the variables of a group from the environment of this process, and so from those it starts."""
    for name in (STARTED_BY_TORCHRUN, *RANKS):
        os.environ.pop(name, None)


def _number(name: str, alone: int) -> int:
    """The number in a variable that torchrun sets; `alone` outside a group."""
    text = os.environ.get(name, "")
    return int(text) if in_group() and text.isdecimal() else alone


def rank() -> int:
    """The number of this process, from 0."""
    return _number("RANK", 0)


def world_size() -> int:
    """How many processes share the job."""
    return _number("WORLD_SIZE", 1)


def local_world_size() -> int:
    """How many processes of the job run on this machine."""
    return _number("LOCAL_WORLD_SIZE", world_size())


def machine_count() -> int:
    """How many machines share the job."""
    return _number("GROUP_WORLD_SIZE", 1)


def is_first() -> bool:
    """True in the process that prints and writes for all."""
    return rank() == 0


def gpu_number() -> int:
    """The number of the GPU of this machine that this process uses."""
    if world_size() == 1:
        return 0
    count: int = require("torch").cuda.device_count()
    return _number("LOCAL_RANK", 0) % max(1, count)


def cpu_share() -> int:
    """How many of the machine's cores this process may use, at least 1."""
    return max(1, (os.cpu_count() or 1) // local_world_size())


def claim_share() -> int:
    """Limits PyTorch to this process's cores and selects its GPU; returns the number of threads for other libraries.

    A single process gets 0, which libraries read as all cores. torchrun would allow each process one thread only.
    """
    if world_size() == 1:
        return 0
    torch, threads = require("torch"), cpu_share()
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(gpu_number())
    return threads


def gather_over_ranks(value: Any) -> list[Any]:
    """The `value` of every process, in order of rank. Values are pickled, so keep them small; every process must call
    it.

    Raises:
        BackendError: another process ended, or the processes cannot connect.
    """
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    with _group() as dist:
        dist.all_gather_object(found, value)
    return found


def broadcast_tensors(tensors: Iterable[Any]) -> None:
    """Overwrites PyTorch `tensors` with those of rank 0, in place; nothing is pickled.

    Every process must call it with as many tensors, of the same shapes, types and device.

    Raises:
        BackendError: another process ended, or the processes cannot connect.
    """
    if world_size() == 1:
        return
    with _group() as dist:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


@contextlib.contextmanager
def _group() -> Iterator[Any]:
    """torch.distributed with a process group: the existing one, else a new one on the CPU, destroyed when Python ends.

    Its errors become BackendError.
    """
    dist = require("torch.distributed")
    if not dist.is_initialized():
        try:
            dist.init_process_group("gloo")
        except (RuntimeError, ValueError) as error:
            raise BackendError(f"The {world_size()} processes cannot connect ({reason(error)}); start them with "
                               "torchrun, and look above for the error of another one.") from error
        # A worker thread of gloo that outlives the interpreter aborts the process (pytorch/pytorch#190489).
        atexit.register(_destroy_group, dist)
    try:
        yield dist
    except RuntimeError as error:
        raise BackendError("Another process failed; its own error is above.") from error


def _destroy_group(dist: Any) -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
