"""Prevents PyTorch from computing float32 in TF32 on a GPU."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import BackendError
from ..optional import require

# NVIDIA's libraries and PyTorch read these; NVIDIA's container images set the second one.
TF32_VARIABLES = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Within the block, PyTorch's float32 products and convolutions on a GPU do not round their inputs to TF32.

    By default convolutions do, and products do if another library enabled it. PyTorch has an older and a newer name
    for each setting, and refuses to read the older one while the two disagree. Both are set and restored.
    """
    torch = require("torch")
    cudnn, newer = torch.backends.cudnn, (torch.backends.cuda.matmul, torch.backends.cudnn.conv,
                                          torch.backends.cudnn.rnn)
    previous = [backend.fp32_precision for backend in newer]
    products, convolutions = _read(torch.get_float32_matmul_precision), _read(lambda: cudnn.allow_tf32)
    if products is not None:
        torch.set_float32_matmul_precision("highest")
    if convolutions is not None:
        cudnn.allow_tf32 = False
    for backend in newer:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        if products is not None:
            torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            cudnn.allow_tf32 = convolutions
        for backend, precision in zip(newer, previous):
            backend.fp32_precision = precision


def _read(setting: Callable[[], Any]) -> Any:
    """The value of a setting by its older name; None if it disagrees with the newer one."""
    try:
        return setting()
    except RuntimeError:
        return None


def require_full_float32() -> None:
    """Raises BackendError if the environment forces TF32 on a GPU, which a program cannot override."""
    forced = [f"{name}={os.environ[name]}" for name in TF32_VARIABLES if os.environ.get(name, "0") not in ("", "0")]
    if forced:
        names = " ".join(setting.partition("=")[0] for setting in forced)
        raise BackendError(f"{' and '.join(forced)} in the environment rounds float32 products to TF32 on this GPU, so "
                           f"its float32 cannot serve as the reference; run 'unset {names}' first, or pass "
                           "--device cpu.")
