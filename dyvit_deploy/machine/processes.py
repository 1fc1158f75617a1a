"""Several processes that share one job, as torchrun or accelerate started them: who am I, and sums over all."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, reason
from ..optional import require


def rank() -> int:
    """The number of this process, from 0; the launcher sets RANK."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes there are; the launcher sets WORLD_SIZE."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """True in the one process that prints and writes."""
    return rank() == 0


def gpu_number() -> int:
    """Which of this machine's GPUs is for this process."""
    if world_size() == 1:
        return 0
    count: int = require("torch").cuda.device_count()
    return int(os.environ.get("LOCAL_RANK", "0")) % max(1, count)


def cpu_share() -> int:
    """How many of the machine's cores are for this process, at least 1."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", world_size())))


def claim_share() -> int:
    """Threads for this process where several share the machine, set in PyTorch, and its GPU made current.

    One process gets 0, which libraries take as all cores. torchrun itself allows each process one thread only.
    """
    if world_size() == 1:
        return 0
    torch, threads = require("torch"), cpu_share()
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(gpu_number())
    return threads


def sum_over_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of every process's float64 array, the same shape in all; every process must call it.

    Raises:
        BackendError: another process is gone, or the processes cannot connect.
    """
    if world_size() == 1:
        return values
    with _group() as dist:
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"          # NCCL reduces GPU memory only
        total = require("torch").tensor(values, device=device)
        dist.all_reduce(total)
        summed: NDArray[np.float64] = total.cpu().numpy()
    return summed


def gather_over_ranks(value: Any) -> list[Any]:
    """Every process's `value`, a small object that can be pickled, in order of rank; every process must call it.

    Raises:
        BackendError: another process is gone, or the processes cannot connect.
    """
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    with _group() as dist:
        dist.all_gather_object(found, value)
    return found


def broadcast_tensors(tensors: Iterable[Any]) -> None:
    """Overwrites PyTorch `tensors` with those of rank 0, in place; every process must call it with the same number of
    tensors, of the same shapes, types and device.

    Raises:
        BackendError: another process is gone, or the processes cannot connect.
    """
    if world_size() == 1:
        return
    with _group() as dist:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def barrier() -> None:
    """Returns when every process has called it."""
    gather_over_ranks(None)


@contextlib.contextmanager
def _group() -> Iterator[Any]:
    """torch.distributed with a process group: the one there is, else a new one on the CPU."""
    dist = require("torch.distributed")
    if not dist.is_initialized():
        try:
            dist.init_process_group("gloo")
        except (RuntimeError, ValueError) as error:
            raise BackendError(f"The {world_size()} processes cannot connect ({reason(error)}); start them with "
                               "torchrun, and look above for the error of another one.") from error
    try:
        yield dist
    except RuntimeError as error:                                           # gloo: connection closed by peer
        raise BackendError("Another process failed; its own error is above.") from error
