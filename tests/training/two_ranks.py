"""Checks what two processes exchange, and writes JSON per rank. test_distributed starts this program with torchrun.

    two_ranks.py FOLDER
"""
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace as Thing
from unittest import mock

import torch
from torch import nn

from dyvit_deploy.machine.hardware import machine
from dyvit_deploy.machine.processes import broadcast_tensors, rank
from dyvit_deploy.training import loop
from dyvit_deploy.training.setup import device_names


def broadcast():
    """Broadcasts tensors that differ per rank; the last one is a scalar, like the counter of a batch norm."""
    tensors = [torch.full((2, 3), rank() + 0.5), torch.tensor([rank() == 0]), torch.tensor(rank() + 7)]
    places = [tensor.data_ptr() for tensor in tensors]
    broadcast_tensors(iter(tensors))
    assert places == [tensor.data_ptr() for tensor in tensors]
    return [tensor.tolist() for tensor in tensors]


def validate():
    """The batch norms that each rank validates with, after each rank saw other images."""
    model, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    for norm in (model, average):
        norm(torch.full((4, 2), 10.0 + rank()))
    evaluated = []

    def evaluate_all(models, *_):
        evaluated.extend({name: value.tolist() for name, value in model.named_buffers()} for model in models)
        return [Thing(top1=1.0, failures=()) for _ in models]

    pickled = mock.Mock(side_effect=AssertionError("tensors are not broadcast as pickled objects"))
    running = Thing(model=model, ema=Thing(module=average), facts=None, val_set=None, fabric=Thing(broadcast=pickled))
    with mock.patch.object(loop, "evaluate_all", evaluate_all), \
            mock.patch.object(loop, "PyTorchRunner", lambda model, *_: model):
        loop.Run._validate(running)
    return evaluated


def gpus():
    """On a simulated machine with two GPUs: the GPU of this rank, and those of all ranks."""
    cuda = {"is_available": lambda: True, "device_count": lambda: 2,
            "get_device_properties": lambda i: Thing(name=f"GPU {i}", major=9, minor=0)}
    with ExitStack() as stack:
        for name, value in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        return [machine()["gpu"], device_names(torch.device("cuda"))]


if __name__ == "__main__":
    results = {check.__name__: check() for check in (broadcast, validate, gpus)}
    Path(sys.argv[1], f"{rank()}.json").write_text(json.dumps(results))
