"""Checks whether a plan can load on this machine, before TensorRT tries, which gives no reason on failure."""
from __future__ import annotations

import dataclasses
import hashlib
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text

from ..artifacts.files import require_file
from ..errors import ArtifactError, BackendError, DyvitError
from ..machine.hardware import LEAST_CAPABILITY, Gpu, gpu, system
from ..settings.tables import Table
from .library import LIBRARY_SPECS, PORTABLE, LibrarySpec, Version, gpu_problem, open_library, parse_version
from .sidecar import EngineFacts, is_altered, read_sidecar, sidecar_path

# The header of a plan of TensorRT for RTX 1.4 to 1.7: magic, size of the file, version.
HEADER = struct.Struct("<4s12xQ4B")
NO_GPU = "no NVIDIA GPU with a driver works here"
ALTERED = "its hash is not the one in its .json, so it is another file than the one that was built"
STRIPPED = "its weights were left out"
OTHER_LIBRARY = "use TensorRT on this GPU: make the engine with --format trt"


@dataclass(frozen=True)
class Preflight:
    """The result of `preflight`; false if the plan cannot load here. `problems` say why, `notes` what is uncertain.

    `built` is what the plan was built with and for, `here` what this machine has. `altered` means that the plan is not
    the file that its sidecar describes. `remedy` is the advice if building again with the same library does not help.
    """

    KIND: ClassVar[str] = "preflight"

    path: str
    built: dict[str, str]
    here: dict[str, str]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    altered: bool
    rebuild: str | None
    remedy: str | None = None

    def __bool__(self) -> bool:
        return not self.problems

    @property
    def advice(self) -> str:
        """What to do about the problems; empty without any."""
        if not self.problems:
            return ""
        if self.remedy:
            return self.remedy
        if ALTERED in self.problems:
            return "copy it again together with its .json, or build it again"
        if NO_GPU in self.problems:
            return "take it to a machine with an NVIDIA GPU"
        if self.problems == (STRIPPED,):
            return f"put them in: dyvit refit {self.path} MODEL.onnx -o FULL.plan"
        return f"build it again here: {self.rebuild}" if self.rebuild else "build it again on this machine"

    @property
    def sentence(self) -> str:
        """The problems and the advice, as an error message."""
        return f"{self.path} cannot load here: {', and '.join(self.problems)}; {self.advice}."

    def to_json(self) -> dict[str, Any]:
        return {"will_load": bool(self), "advice": self.advice, **dataclasses.asdict(self)}

    def table(self) -> Table:
        """What the plan was built for, beside what this machine has."""
        table = Table(title=Text(f"{self.path}: {'should load here' if self else 'will NOT load here'}"),
                      title_justify="left")
        for column in ("", "built for", "here"):
            table.add_column(column, overflow="fold")
        for name in dict.fromkeys((*self.built, *self.here)):
            table.add_row(name, Text(self.built.get(name, "unknown")), Text(self.here.get(name, "-")))
        for problem in self.problems:
            table.add_row(Text("problem", "red"), Text(problem), "")
        return table


def read_plan_header(path: Path) -> tuple[LibrarySpec, Version] | None:
    """The library and version in a plan's first bytes; None if they are not recorded there.

    Raises:
        ArtifactError: it is not a plan, or it is incomplete.
    """
    path = require_file(path)
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if path.suffix.lower() == ".onnx":
        raise ArtifactError(f"{path} is an ONNX file; dyvit build makes an engine plan of it.")
    # TensorRT for RTX writes vtrt, TensorRT ftrt; Torch-TensorRT checks for these, too.
    if head[1:4] != b"trt":
        raise ArtifactError(f"{path} is not an engine plan; if another tool put its own data before the plan, cut that "
                            "off, else build it again.")
    spec = next((spec for spec in LIBRARY_SPECS.values() if spec.magic == head[:4]), None)
    if spec is None or len(head) < HEADER.size:
        return None
    _, size, *version = HEADER.unpack(head)
    if size != path.stat().st_size:
        raise ArtifactError(f"{path} has {path.stat().st_size} of the {size} bytes of its plan: it was not copied to "
                            "the end, or changed; copy or build it again.")
    return spec, tuple(version)


def preflight(path: str | Path) -> Preflight:
    """Compares what the plan was built with and for with this machine.

    Raises:
        ArtifactError: the file is not a plan or is incomplete, or dyvit did not write its sidecar.
    """
    path = require_file(path)
    facts = read_sidecar(path)
    altered = facts is not None and is_altered(path, facts)
    if facts and path.stat().st_size < facts.plan["bytes"] and read_plan_header(path) is None:
        raise ArtifactError(f"{path} has {path.stat().st_size} of the {facts.plan['bytes']} bytes of its plan: it was "
                            "not copied to the end; copy or build it again.")
    header = read_plan_header(path) if facts is None or altered else None
    spec = LIBRARY_SPECS[facts.builder["format"]] if facts else header[0] if header else LIBRARY_SPECS["trt"]
    built, device = _built(facts, spec, header), gpu()
    here = {"graphics card": _describe(device), "system": system()}
    problems: list[str] = []
    notes: list[str] = []
    try:
        version = open_library(spec.format).version
        here["library"] = f"{spec.name} {version}"
        problems += _versions(spec, facts, header, version)
    except DyvitError as error:
        here["library"] = f"{spec.name} is not usable"
        problems.append(str(error).rstrip("."))
    remedy = None
    if device is None:
        problems.append(NO_GPU)
    elif (unsupported := gpu_problem(spec, device)) is not None:
        problems.append(unsupported)
        remedy = OTHER_LIBRARY
    elif facts:
        problems += _gpus(facts, device)
    if facts and facts.target.get("system") not in (None, system()):
        problems.append(f"it was built for {facts.target['system']}, and this is {system()}")
    if facts and facts.stripped:
        problems.append(STRIPPED)
    if altered:
        problems.append(ALTERED)
    if facts is None:
        notes.append("There is no .json beside the plan, so what it was built for is known only in part, and it loads "
                     "only with --trust.")
    rebuild = facts.rebuild if facts else None
    # The command as recorded would build for the same GPUs again.
    if rebuild and device:
        rebuild = re.sub(r"--compute-capability \S+", f"--compute-capability {device.compute_capability}", rebuild)
    return Preflight(str(path), built, here, tuple(problems), tuple(notes), altered, rebuild, remedy)


def require_loadable(path: Path, trust: bool, stripped: bool = False) -> tuple[LibrarySpec, EngineFacts | None]:
    """The library and the facts of a plan that passed `preflight`; without facts if the plan is altered.

    Args:
        trust: accept a plan that is not the file that its sidecar describes, or that has no sidecar.
        stripped: accept a plan without weights.

    Raises:
        ArtifactError: no sidecar describes the plan, and `trust` is false.
        BackendError: it cannot load here.
    """
    report = preflight(path)
    facts = read_sidecar(path)
    if not trust and (report.altered or facts is None):
        raise ArtifactError(f"{path} {_unknown(path, facts)}; a plan is native code, so load it with --trust only when "
                            "you know where it comes from, or build it again.")
    accepted = (ALTERED, STRIPPED) if stripped else (ALTERED,)
    rest = tuple(problem for problem in report.problems if problem not in accepted)
    if rest:
        raise BackendError(dataclasses.replace(report, problems=rest).sentence)
    if facts:
        return LIBRARY_SPECS[facts.builder["format"]], None if report.altered else facts
    header = read_plan_header(path)
    return header[0] if header else LIBRARY_SPECS["trt"], None


def require_described(path: Path) -> EngineFacts:
    """The facts of a plan; for commands that need them, which cannot be told to trust the plan.

    Raises:
        ArtifactError: no sidecar describes the plan.
    """
    facts = read_sidecar(path)
    if facts is None or is_altered(path, facts):
        raise ArtifactError(f"{path} {_unknown(path, facts)}; copy both files again, or build it again.")
    return facts


def _unknown(path: Path, facts: EngineFacts | None) -> str:
    name = sidecar_path(path).name
    return f"has no {name}, which says what it is" if facts is None else f"is not the file that {name} describes"


def read_trusted(path: Path, facts: EngineFacts | None) -> bytes:
    """The plan's bytes, compared with the hash in `facts`: the file may have changed since the preflight.

    Raises:
        ArtifactError: the hashes differ.
    """
    content = path.read_bytes()
    if facts and hashlib.sha256(content).hexdigest() != facts.plan["sha256"]:
        raise ArtifactError(f"{path} changed while it was opened; try again.")
    return content


def _built(facts: EngineFacts | None, spec: LibrarySpec,
           header: tuple[LibrarySpec, Version] | None) -> dict[str, str]:
    if facts is None:
        version = " " + ".".join(map(str, header[1])) if header else ""
        return {"library": f"{spec.name}{version}"}
    target = facts.target
    capabilities = ", ".join(target.get("compute_capabilities") or ())
    card = f"any of compute capability {PORTABLE}"
    if capabilities:
        card = f"compute capability {capabilities}"
    elif target.get("gpu"):
        card = f"{target['gpu']} (compute capability {target.get('compute_capability')})"
    return {"library": f"{spec.name} {facts.builder['version']}", "graphics card": card,
            "system": str(target.get("system"))}


def _describe(device: Gpu | None) -> str:
    return f"{device.name} (compute capability {device.compute_capability})" if device else "none that works"


def _versions(spec: LibrarySpec, facts: EngineFacts | None, header: tuple[LibrarySpec, Version] | None,
              here: str) -> list[str]:
    built, now = parse_version(facts.builder["version"]) if facts else None, parse_version(here)
    if header and not facts:
        built = header[1]
    if built is None or built == now[:len(built)]:
        return []
    if facts and facts.config.version_compatible and built <= now:
        return []
    return [f"it was built by {spec.name} {'.'.join(map(str, built))}, and {here} is installed"]


def _gpus(facts: EngineFacts, device: Gpu) -> list[str]:
    capabilities, here = facts.target.get("compute_capabilities") or (), device.compute_capability
    if capabilities:
        return [] if here in capabilities else [f"it was built for compute capability {', '.join(capabilities)}, and "
                                                f"{device.name} has {here}"]
    least = max(LEAST_CAPABILITY.get(kind, 0.0) for kind in (*facts.products.values(), "float32"))
    if float(here) < least:
        kinds = [kind for kind in set(facts.products.values()) if LEAST_CAPABILITY.get(kind, 0.0) > float(here)]
        return [f"it computes in {', '.join(sorted(kinds))}, which {device.name} (compute capability {here}) does not "
                "support"]
    if facts.builder["format"] == "rtx":
        return []
    built = facts.target.get("compute_capability")
    if built in (None, here) or (facts.config.hardware_compatible and float(here) >= 8):
        return []
    return [f"it was built for {facts.target.get('gpu')} (compute capability {built}), and {device.name} has {here}"]
