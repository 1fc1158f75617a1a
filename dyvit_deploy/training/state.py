"""The state that a run needs to resume bit for bit (optimizer, moving average, gradient scaler), and the request to
stop a run."""
from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..model.dynamicvit import DynamicViT
from ..model.state import published_name

EMA = "ema/"
SCALER = "scaler/"


def resume_tensors(model: DynamicViT, optimizer: torch.optim.Optimizer, ema: DynamicViT | None,
                   scaler: Any) -> dict[str, Tensor]:
    """The state of a run besides its weights, by published tensor names."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{published_name(name)}/{key}"] = torch.as_tensor(value)
    if ema is not None:
        tensors |= {EMA + published_name(name): value for name, value in ema.state_dict().items()}
    if scaler is not None:
        tensors |= {SCALER + key: torch.tensor(value) for key, value in scaler.state_dict().items()}
    return tensors


def restore(tensors: Mapping[str, Tensor], model: DynamicViT, optimizer: torch.optim.Optimizer,
            ema: DynamicViT | None, scaler: Any) -> None:
    """Restores the state from the result of `resume_tensors`."""
    for name, parameter in model.named_parameters():
        prefix = published_name(name) + "/"
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if state:
            optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in state.items()}
    if ema is not None:
        ema.load_state_dict({name: tensors[EMA + published_name(name)] for name in ema.state_dict()})
    saved = {key.removeprefix(SCALER): value.item() for key, value in tensors.items() if key.startswith(SCALER)}
    if scaler is not None and saved:
        scaler.load_state_dict(saved)


class StopRequest:
    """True after SIGTERM or Ctrl-C; the run then stops after the current step."""

    def __init__(self) -> None:
        self.requested = False

    def __bool__(self) -> bool:
        return self.requested

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handles the signals within the block; a second signal takes effect at once.

        Does nothing outside the main thread, which alone may handle signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        previous: dict[int, Any] = {number: signal.getsignal(number) or signal.SIG_DFL
                                    for number in (signal.SIGTERM, signal.SIGINT)}

        def request(number: int, frame: Any) -> None:
            self.requested = True
            signal.signal(number, previous[number])

        for number in previous:
            signal.signal(number, request)
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
