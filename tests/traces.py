"""Exports that tests have in common: torch.onnx takes seconds for a tiny model, and most tests are about what comes
after. They are kept in pytest's cache, for later sessions too, until the package or one of its libraries changes."""
from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from filelock import FileLock

import dyvit_deploy
from dyvit_deploy.artifacts.facts import library_versions
from dyvit_deploy.export import onnx as exporter

PLAIN = (bool, int, float, str, tuple, frozenset, type(None))


def fingerprint(model: torch.nn.Module, *options: Any) -> str:
    """Equal for models and options that give the same graph: modules, settings and tensors; see `exporter_version`."""
    digest = hashlib.sha256(repr(options).encode())
    for name, module in model.named_modules():
        settings = sorted((key, value) for key, value in vars(module).items() if isinstance(value, PLAIN))
        digest.update(repr((name, type(module).__qualname__, settings, module.extra_repr())).encode())
    digest.update(repr((model.config, model.prune)).encode())
    # Both, because a buffer need not be part of the state.
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape), str(tensor.device))).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def exporter_version() -> str:
    """Changes with the libraries and with every source file that a traced graph depends on."""
    digest = hashlib.sha256(repr(library_versions("torch", "timm", "onnx", "onnxscript", "onnx-ir")).encode())
    package = Path(dyvit_deploy.__file__).parent
    for folder in (package, package / "model", package / "export", package / "graph", package / "data"):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class Traces:
    """What the exporter traces, kept in a folder that the processes of all sessions share."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.trace, self.used = folder / exporter_version(), exporter._trace, True
        for other in folder.iterdir():
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        self.folder.mkdir(exist_ok=True)

    def __call__(self, model: torch.nn.Module, names: list[str], config: Any) -> tuple[onnx_ir.Model, Any]:
        if not self.used:
            return self.trace(model, names, config)
        place = self.folder / fingerprint(model, names, config)
        # The other process waits for the one that has begun.
        with FileLock(f"{place}.lock"):
            if not place.exists():
                traced, forms = self.trace(model, names, config)
                content = onnx_ir.to_proto(traced).SerializeToString()
                place.with_suffix(".new").write_bytes(pickle.dumps((content, forms)))
                os.replace(place.with_suffix(".new"), place)
        content, forms = pickle.loads(place.read_bytes())
        return onnx_ir.from_proto(onnx.ModelProto.FromString(content)), forms
