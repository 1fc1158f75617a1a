"""Trains the tiny model and writes the loss of every step. test_distributed starts this program with torchrun.

    share_a_run.py DATA OUT LOSSES [FAILING_RANK]
"""
import json
import os
import sys

import torch
from helpers import tiny_config

from dyvit_deploy.config import KeepRequest
from dyvit_deploy.machine.processes import rank
from dyvit_deploy.model import zoo
from dyvit_deploy.training.command import train
from dyvit_deploy.training.plan import TrainConfig
from dyvit_deploy.training.report import Step


def run(data: str, out: str, losses: str, failing: int = -1) -> None:
    zoo.MODELS["tiny"] = tiny_config(classes=2)
    torch.set_num_threads(1)
    curve = []

    def watch(event):
        if isinstance(event, Step):
            curve.append(event.loss)
            if rank() == failing and event.step == 2:
                raise ValueError("this process fails on request")

    overrides = (("epochs", 7), ("batch", 8), ("precision", "fp32"), ("lr", 1e-3), ("ema", None))
    train(TrainConfig("tiny", data, out, KeepRequest(ratio=0.5), f"{data}/tiny-dense.safetensors", overrides=overrides,
                      workers=0, device="cpu", accumulate=int(os.environ.get("ACCUMULATE", "1"))), watch)
    if rank() == 0:
        with open(losses, "w") as file:
            json.dump(curve, file)


if __name__ == "__main__":
    run(*sys.argv[1:4], *map(int, sys.argv[4:]))
