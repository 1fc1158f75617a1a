"""Writes a Triton model repository, completely or not at all, and checks an existing one against its artifacts."""
from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifacts.facts import ArtifactFacts
from ..artifacts.files import atomic_write, make_folder, unwritten
from ..artifacts.locks import remove, temporary_path
from ..data import preprocess as preprocessing
from ..data.label_files import read_labels
from ..errors import ArtifactError, ConfigError, ExportError
from ..graph.files import copy_graph
from ..graph.read import Tensor
from ..optional import require
from ..settings.untrusted import parse_json, typed
from .config import ServingConfig
from .interface import SERVED, Servable, read_servable
from .journal import begin, finish, require_finished, undo_unfinished
from .pbtxt import (
    ENSEMBLE,
    KINDS,
    LABELS,
    MAX_BATCH,
    MAX_PIXELS,
    PREPROCESS,
    Config,
    core_config,
    ensemble_config,
    normal,
    preprocess_config,
    read_pbtxt,
    router_config,
    to_pbtxt,
)

HERE = Path(__file__).parent
HEADER = "# Written by dyvit from the artifact; `dyvit serve REPOSITORY --check` compares the two.\n"
CONFIG = "config.pbtxt"
# Triton's TensorRT backend loads a version-compatible plan only with it.
VERSION_COMPATIBLE = "--backend-config=tensorrt,version-compatible=true"
README_MARK = "Written by dyvit from the artifacts themselves"


@dataclass(frozen=True)
class ModelFolder:
    """One model folder to write: its config, and its files by relative path. A str is the content of a file, a Path is
    copied."""

    config: Config
    files: dict[str, str | Path]
    servable: Servable | None = None

    @property
    def name(self) -> str:
        return str(self.config["name"])


@dataclass(frozen=True)
class ServedModel:
    """A model in a repository that dyvit wrote: its artifact in the newest version, and the models that use it.

    `ensemble` is the model that takes encoded or raw images and passes them on, None if there is none. `routers` are
    the models that choose this one among several by its `keep_ratio`. With `orient`, the ensemble turns images as their
    EXIF orientation says.
    """

    name: str
    servable: Servable
    config: Config
    version: int
    ensemble: str | None
    routers: tuple[str, ...]
    keep_ratio: str | None
    orient: bool

    @property
    def max_batch(self) -> int:
        return int(self.config["max_batch_size"])


def model_name(facts: ArtifactFacts) -> str:
    """The default name of a model in a repository: its own name, with characters that Triton accepts."""
    return re.sub(r"[^\w.-]", "_", facts.model.name)


def server_flags(models: Iterable[ServedModel]) -> list[str]:
    """Options of tritonserver without which it does not load `models`."""
    return [VERSION_COMPATIBLE] if any(model.servable.version_compatible for model in models) else []


def version_exists(folder: Path, name: str, version: int) -> ConfigError:
    """The error for a version of a model that the repository already has."""
    return ConfigError(f"{folder} has version {version} of {name!r} already; pass --model-version "
                       f"{max(_versions(folder / name)) + 1} to put a new one beside it, or --name for another name.")


def model_folders(served: Mapping[float, Servable], settings: ServingConfig) -> list[ModelFolder]:
    """The model folders for one artifact, or for several keep ratios and a router, the highest first.

    Raises:
        ConfigError: `settings.max_batch` is larger than an engine's largest batch.
        DataError: `settings.labels` are not those of the model.
    """
    ratios = sorted(served, reverse=True)
    first = served[ratios[0]]
    name = settings.name or model_name(first.facts)
    cores = {ratio: name if len(ratios) == 1 else f"{name}-{ratio:g}" for ratio in ratios}
    # One line each, even if a name has line breaks.
    names = read_labels(settings.labels, first.facts.model.classes) if settings.labels else first.facts.class_names
    labels = "".join(f"{' '.join(str(label).split())}\n" for label in names or range(first.facts.model.classes))
    batch = _max_batch(served.values(), settings.max_batch)
    prepare = f"{name}{PREPROCESS}"
    found = []
    for ratio, core in cores.items():
        servable = served[ratio]
        files: dict[str, str | Path] = {f"{settings.version}/{file}": path for path, file in servable.files}
        found.append(ModelFolder(core_config(core, servable, batch, settings.instances), {LABELS: labels, **files},
                                 servable))
    found.append(ModelFolder(preprocess_config(prepare, first, batch, settings.orient), {
        "1/model.py": HERE / "models" / "preprocess.py", "1/preprocess.py": Path(preprocessing.__file__)}))
    found += [ModelFolder(ensemble_config(f"{core}{ENSEMBLE}", prepare, core, served[ratio], batch),
                    {LABELS: labels, "1/README": "Triton wants a version folder of an ensemble, too.\n"})
              for ratio, core in cores.items()]
    if len(ratios) > 1:
        found.append(ModelFolder(router_config(name, cores, [served[ratio] for ratio in ratios], batch),
                           {LABELS: labels, "1/model.py": HERE / "models" / "router.py"}))
    return found


def _max_batch(servables: Any, wanted: int | None) -> int:
    limits = {servable.path: servable.largest for servable in servables if servable.largest}
    for path, largest in limits.items():
        if wanted and wanted > largest:
            raise ConfigError(f"--max-batch {wanted} is more than the {largest} that {path} was built for; lower it, "
                              f"or build the engine with --batch 1:8:{wanted}.")
    return wanted or min(limits.values(), default=MAX_BATCH)


@contextlib.contextmanager
def unfinished(folder: Path, models: Sequence[ModelFolder], version: int) -> Iterator[None]:
    """Writes all model folders or none: they are made beside the repository and moved into it, then the block runs;
    after a failure in either they are removed again.

    An existing model may get one more version if nothing else about it changes. The lock of `folder` must be held.
    Folders are moved in the order of `models`, each after those that it needs, so that Triton loads whatever a kill
    leaves; `undo_unfinished` removes that.

    Raises:
        ConfigError: the repository has a different model of that name, or that version of it.
        ArtifactError: the folder cannot be written.
    """
    new = [model for model in models if not _is_there(folder, model, version)]
    folder = make_folder(folder).resolve()
    places = [Path(model.name, str(version)) if (folder / model.name).exists() else Path(model.name) for model in new]
    staging = _staging(folder)
    try:
        remove(staging)
        staging.mkdir()
        for model in new:
            _write(staging / model.name, model)
        begin(folder, places)
        for place in places:
            os.rename(staging / place, folder / place)
        yield
        finish(folder)
    # Ctrl-C must leave nothing half-written either.
    except BaseException as error:
        undo_unfinished(folder)
        if not isinstance(error, OSError):
            raise
        raise unwritten(folder, error) from error
    finally:
        remove(staging)


def _staging(folder: Path) -> Path:
    """The folder in which model folders are made before they are moved into the repository: beside the repository,
    because a polling server would load what is inside; inside it only if it is a file system of its own, into which
    nothing can be moved."""
    beside = temporary_path(folder, "dir")
    same = folder.parent.stat().st_dev == folder.stat().st_dev and os.access(folder.parent, os.W_OK)
    return beside if same else folder / beside.name


def _is_there(folder: Path, model: ModelFolder, version: int) -> bool:
    """True if the repository already has this model and it needs no new version, because it has no artifact."""
    place = folder / model.name
    if not place.exists():
        return False
    same = (place / CONFIG).is_file() and read_pbtxt(place / CONFIG) == normal(model.config) and all(
        (place / file).is_file() and (place / file).read_bytes() == _content(content)
        for file, content in model.files.items() if model.servable is None or "/" not in file)
    if not same:
        raise ConfigError(f"{folder} has another model called {model.name!r}; pass --name for a name of its own, or "
                          "remove that folder.")
    if model.servable and (place / str(version)).exists():
        raise version_exists(folder, model.name, version)
    return model.servable is None


def _content(content: str | Path) -> bytes:
    return content.encode() if isinstance(content, str) else content.read_bytes()


def _write(place: Path, model: ModelFolder) -> None:
    for file, content in model.files.items():
        target = place / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            target.write_text(content, "utf-8")
        elif target.suffix == ".onnx":
            copy_graph(content, target)
        else:
            shutil.copyfile(content, target)
    (place / CONFIG).write_text(HEADER + to_pbtxt(model.config), "utf-8")


def _versions(place: Path) -> list[int]:
    return sorted(int(path.name) for path in place.iterdir() if path.is_dir() and path.name.isdigit())


def read_repository(folder: str | Path) -> list[ServedModel]:
    """The models that dyvit wrote into a repository, each checked against its artifact; other models are ignored.

    Raises:
        ArtifactError: there is no repository, it has no model that dyvit wrote, or files cannot be read.
        ExportError: a configuration contradicts its artifact.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder; make a repository with dyvit export CHECKPOINT --format triton "
                            f"-o {folder}.")
    if (folder / CONFIG).is_file():
        raise ArtifactError(f"{folder} is one model; name the repository that it is in, {folder.resolve().parent}.")
    require_finished(folder)
    return _read_models(folder)


def _read_models(folder: Path) -> list[ServedModel]:
    configs = {path.parent.name: read_pbtxt(path) for path in sorted(folder.glob(f"*/{CONFIG}"))}
    found = [_read_model(folder, name, configs, version, artifact) for name in configs
             for version, artifact in _artifacts(folder / name)]
    if not found:
        raise ArtifactError(f"{folder} holds no model that dyvit wrote; make one with dyvit export CHECKPOINT --format "
                            f"triton -o {folder}.")
    # The newest of several versions.
    return list({model.name: model for model in found}.values())


def _artifacts(place: Path) -> Iterator[tuple[int, Path]]:
    """Each version of a model with its artifact, the newest last. Nothing for models that dyvit did not write, whose
    files have the same names, and for models that have no artifact."""
    text = (place / CONFIG).read_text("utf-8", "replace")
    if not text.startswith(HEADER[:HEADER.index(";")]) or not re.search(f'^backend: "({"|".join(KINDS)})"', text, re.M):
        return
    for version in _versions(place):
        found = [path for suffix in SERVED if (path := place / str(version) / f"model{suffix}").is_file()]
        if not found:
            raise ArtifactError(f"{place / str(version)} has no model in it; remove that version, or export it again.")
        yield from ((version, path) for path in found)


def _read_model(folder: Path, name: str, configs: Mapping[str, Config], version: int, artifact: Path) -> ServedModel:
    servable, config = read_servable(artifact), configs[name]
    largest = servable.largest
    where = folder / name / CONFIG
    batch = int(config.get("max_batch_size", 0))
    if not 1 <= batch <= (largest or batch):
        raise _disagrees(where, "max_batch_size", batch, f"at most {largest}" if largest else "1 or more")
    _compare(where, config, core_config(name, servable, batch, 1), ("name", "backend", "input", "output"))
    labels = folder / name / LABELS
    lines = labels.read_text("utf-8", "replace").strip("\n").split("\n") if labels.is_file() else []
    if len(lines) != servable.facts.model.classes:
        raise _disagrees(labels, "number of lines", len(lines), servable.facts.model.classes)
    ensemble = f"{name}{ENSEMBLE}" if f"{name}{ENSEMBLE}" in configs else None
    orient = bool(ensemble and _check_ensemble(folder, ensemble, name, configs, servable))
    ratios = {router: ratio for router, models in _routers(configs) for ratio, to in models.items() if to == name}
    return ServedModel(name, servable, config, version, ensemble, tuple(ratios), next(iter(ratios.values()), None),
                       orient)


def _check_ensemble(folder: Path, ensemble: str, core: str, configs: Mapping[str, Config], servable: Servable) -> bool:
    """Whether its preprocessing applies the EXIF orientation; raises ExportError if it does not fit the artifact."""
    config, where = configs[ensemble], folder / ensemble / CONFIG
    batch = int(config.get("max_batch_size", 0))
    steps = [step["model_name"] for step in config.get("ensemble_scheduling", {}).get("step", [])]
    if missing := [step for step in steps if step not in configs]:
        raise ExportError(f"{where} needs the model {missing[0]}, which is missing; export the repository again.")
    if len(steps) != 2:
        raise _disagrees(where, "steps", steps, "a model that prepares images, and the model")
    _compare(where, config, ensemble_config(ensemble, steps[0], core, servable, batch),
             ("name", "input", "output", "ensemble_scheduling"))
    prepare, where = configs[steps[0]], folder / steps[0] / CONFIG
    spec = _parameter(prepare, "spec")
    orient = spec.get("orient") is True
    expected = preprocess_config(steps[0], servable, batch, orient)
    _compare(where, prepare, expected, ("input", "output"))
    wanted = _parameter(expected, "spec")
    # The limits may be changed by the user.
    for field in ("image_size", "preprocess", "dtype"):
        if spec.get(field) != wanted[field]:
            raise _disagrees(where, field, spec.get(field), wanted[field])
    return orient


def _parameter(config: Config, name: str) -> dict[str, Any]:
    """A parameter that dyvit wrote as JSON; empty if the model has none."""
    text = config.get("parameters", {}).get(name, {}).get("string_value", "{}")
    try:
        found: dict[str, Any] = typed(parse_json(str(text)), dict[str, Any], name)
    # dyvit did not write this model.
    except ConfigError:
        return {}
    return found


def _routers(configs: Mapping[str, Config]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each router's name, and its models by keep ratio."""
    for name, config in configs.items():
        models = _parameter(config, "models")
        # A router of another tool may name its models otherwise.
        if models and all(isinstance(to, str) and re.fullmatch(r"[01](\.\d{1,20})?", ratio)
                          for ratio, to in models.items()):
            yield name, models


def _compare(where: Path, config: Config, expected: Config, fields: Sequence[str]) -> None:
    wanted = normal(expected)
    for field in fields:
        if config.get(field) != wanted.get(field):
            raise _disagrees(where, field, config.get(field), wanted.get(field))


def _disagrees(where: Path, field: str, found: object, wanted: object) -> ExportError:
    return ExportError(f"{where} says {field} {_plain(found)}, but its artifact needs {_plain(wanted)}; export the "
                       "repository again, or undo the change.")


def _plain(value: Any) -> str:
    """A value of a configuration as text for a message."""
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, dict) and "dims" in value:
        return f"{value['name']} {value['data_type']} [{', '.join(value['dims'])}]"
    return json.dumps(value) if isinstance(value, dict) else str(value)


def write_readme(folder: Path) -> list[str]:
    """Writes the README.md of a repository about all models that dyvit wrote; returns notes if it cannot."""
    target = folder / "README.md"
    if target.exists() and README_MARK not in target.read_text("utf-8", "replace"):
        return [f"{target} was not written by dyvit, and was left as it is."]
    try:
        models = _read_models(folder)
    # A model that was there before cannot be read.
    except (ArtifactError, ExportError) as error:
        return [f"{target} was not written: {error}"]
    jinja2 = require("jinja2", extra="triton")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
                                     undefined=jinja2.StrictUndefined)
    environment.filters |= {"tensor": _tensor_text, "quote": shlex.quote}
    routers: dict[str, list[ServedModel]] = {}
    for model in sorted(models, key=lambda m: -float(m.keep_ratio or 0)):
        for router in model.routers:
            routers.setdefault(router, []).append(model)
    text = environment.from_string((HERE / "README.md.j2").read_text("utf-8")).render(
        folder=folder.resolve().name, models=models, routers=routers, megapixels=MAX_PIXELS // 10**6, mark=README_MARK,
        flags="".join(f" {flag}" for flag in server_flags(models)))
    with atomic_write(target) as temporary:
        temporary.write_text(text, "utf-8")
    return []


def _tensor_text(tensor: Tensor) -> str:
    shape = ", ".join("batch" if side is None else str(side) for side in tensor.shape)
    return f"`{tensor.name}` {tensor.dtype} [{shape}]"
