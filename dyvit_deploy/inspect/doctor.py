"""Finds out which backends can run on this machine, and what to install for the others."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.text import Text

from ..artifacts.facts import library_versions, version_of
from ..engine.library import LIBRARY_SPECS, PORTABLE, gpu_problem, open_library
from ..engine.preflight import OTHER_LIBRARY
from ..errors import BackendError, DyvitError, reason
from ..machine.hardware import gpu
from ..optional import installed, require
from ..settings.tables import Table

READY, MISSING, UNUSABLE = "ready", "not installed", "installed, not usable"


@dataclass(frozen=True)
class Backend:
    """One row: `state` is READY, MISSING or UNUSABLE, `devices` are those that the backend can use or why it is not
    usable, `does` is what it is used for, and `fix` is a command that installs or repairs it."""

    name: str
    state: str
    version: str | None
    devices: str
    does: str
    fix: str | None


@dataclass(frozen=True)
class DoctorReport:
    KIND: ClassVar[str] = "doctor"
    backends: tuple[Backend, ...]
    versions: dict[str, str]

    def __bool__(self) -> bool:
        """True when a checkpoint can be exported and run here."""
        return all(b.state == READY for b in self.backends if b.name in ("PyTorch", "ONNX Runtime"))

    def to_json(self) -> dict[str, Any]:
        return {"ready": bool(self), **dataclasses.asdict(self)}

    def table(self) -> Table:
        table = Table(title="Backends", title_justify="left")
        for column in ("backend", "state", "version", "devices", "what for", "to get it"):
            table.add_column(column, overflow="fold")
        style = {READY: "green", MISSING: "dim", UNUSABLE: "yellow"}
        for b in self.backends:
            table.add_row(b.name, Text(b.state, style[b.state]), b.version or "", b.devices, b.does, Text(b.fix or ""))
        return table


def _torch_devices() -> str:
    torch = require("torch")
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(["cpu", *cuda])


def _ort_devices() -> str:
    from ..runners.ort import cuda_works

    # By name: the metadata of other packages may be damaged.
    if version_of("onnxruntime") and version_of("onnxruntime-gpu"):
        raise RuntimeError("onnxruntime and onnxruntime-gpu overwrite each other; uninstall both, then install one")
    return "cpu, cuda" if cuda_works() else "cpu"


def _openvino_devices() -> str:
    from ..machine.openvino import core, cpu_has_bfloat16

    return ", ".join(core().available_devices).lower() + (" with bfloat16" if cpu_has_bfloat16() else "")


def _engine_devices(format: str) -> str:
    open_library(format)
    device = gpu()
    if device is None and not LIBRARY_SPECS[format].builds_without_gpu:
        raise BackendError("no GPU with a driver works here, which it needs to build and to run")
    if device is None:
        return "builds only: no GPU works here"
    problem = gpu_problem(LIBRARY_SPECS[format], device)
    return (f"builds only: {problem}; {OTHER_LIBRARY}" if problem
            else f"{device.name} (compute capability {device.compute_capability})")


def _nothing() -> str:
    return ""


@dataclass(frozen=True)
class _Probe:
    """How to look for a backend: its `module`, and the `distributions` on PyPI that may provide it."""

    name: str
    module: str
    distributions: tuple[str, ...]
    does: str
    fix: str
    devices: Callable[[], str] = _nothing


PROBES = (
    _Probe("PyTorch", "torch", ("torch",), "train, export, reference runs", "pip install dyvit-deploy", _torch_devices),
    _Probe("ONNX Runtime", "onnxruntime", ("onnxruntime-gpu", "onnxruntime"), "run, check and bench ONNX",
           "pip install dyvit-deploy", _ort_devices),
    _Probe("digits data", "sklearn", ("scikit-learn",), "demo data set, quickstart",
           "pip install 'dyvit-deploy[demo]'"),
    _Probe("OpenVINO", "openvino", ("openvino",), "float32, bfloat16 and int8 on CPUs",
           "pip install 'dyvit-deploy[openvino]'", _openvino_devices),
    _Probe("ModelOpt", "modelopt", ("nvidia-modelopt",), "float16 and bfloat16; int8 and float8 for TensorRT",
           "pip install 'dyvit-deploy[calib]'"),
    _Probe("TensorRT for RTX", "tensorrt_rtx", ("tensorrt-rtx",),
           f"engines; builds without a GPU, runs on those of compute capability {PORTABLE}",
           LIBRARY_SPECS["rtx"].get_it, lambda: _engine_devices("rtx")),
    _Probe("TensorRT", "tensorrt", ("tensorrt",), "engines; builds and runs on a GPU", LIBRARY_SPECS["trt"].get_it,
           lambda: _engine_devices("trt")),
)


def diagnose() -> DoctorReport:
    """Looks for every backend and lists the devices of those that are installed."""
    return DoctorReport(tuple(_examine(probe) for probe in PROBES), library_versions("timm", "onnx", "onnxscript"))


def _examine(probe: _Probe) -> Backend:
    if not installed(probe.module):
        return Backend(probe.name, MISSING, None, "", probe.does, probe.fix)
    version = next(filter(None, map(version_of, probe.distributions)), None)
    try:
        require(probe.module)
        devices = probe.devices()
    # A broken library can raise any of these on import or on use.
    except (DyvitError, ImportError, OSError, RuntimeError, AttributeError) as error:
        # The message of a DyvitError already says what to do.
        repair = None if isinstance(error, DyvitError) else f"pip install --force-reinstall {probe.distributions[0]}"
        return Backend(probe.name, UNUSABLE, version, reason(error), probe.does, repair)
    return Backend(probe.name, READY, version, devices, probe.does, None)

