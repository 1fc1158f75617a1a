"""Reads the containers of checkpoints: PyTorch's pickles, safetensors, and folders of sharded weights.

A pickle is read by PyTorch's unpickler for weights, which runs no code: it creates tensors, plain data, and the types
in PLAIN. Of configuration objects of training libraries the content is kept, and their classes are not created.
"""
from __future__ import annotations

import argparse
import collections
import datetime
import math
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import safetensors
import torch

from ..artifacts.kinds import CHECKPOINT, INDEX, SUFFIXES, foreign_kind, is_safetensors
from ..errors import CheckpointError, ConfigError, reason
from ..settings import untrusted

# Weights in a folder, preferred first.
WEIGHT_FILES = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
# Characters of a name from a file in a message.
LONGEST = 200
# PyTorch does not compress: the entries of an archive have together the size of the file, and a few bytes more. Allowed
# are so many times that, for archives that were packed again, and MiB.
MOST_EXPANDED, EXPANDED_MIB = 8, 16
# Bytes of the header of a safetensors file; those of the largest language models have one.
LONGEST_HEADER = 16 << 20
# Configurations are not nested deeper, and have not more values.
DEEPEST, MOST_ITEMS = 12, 20_000


class Opaque:
    """Stands for an object whose class is not created; `state` is its content."""

    def __init__(self, *args: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def plain(value: Any) -> Any:
    """Namespaces and configuration objects as dictionaries, lists and tuples as lists, NumPy scalars as Python's.

    None stands for what is nested deeper than DEEPEST, and for everything after MOST_ITEMS.
    """
    return _plain(value, 0, iter(range(MOST_ITEMS)))


def _plain(value: Any, depth: int, budget: Iterator[int]) -> Any:
    if depth > DEEPEST or next(budget, None) is None:
        return None
    if isinstance(value, Opaque):
        state = value.state if isinstance(value.state, Mapping) else {}
        return _plain(next((state[name] for name in NODE_CONTENT if name in state), None), depth + 1, budget)
    if isinstance(value, (argparse.Namespace, SimpleNamespace)):
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1, budget) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1, budget) for item in value]
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if isinstance(value, (np.ndarray, torch.Tensor)) and math.prod(value.shape) <= MOST_ITEMS:
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def _types_in(module: Any, suffix: str = "") -> list[type]:
    return [value for name, value in vars(module).items() if isinstance(value, type) and name.endswith(suffix)]


def _without_factory(factory: Any = None) -> collections.OrderedDict[Any, Any]:
    """In place of a `defaultdict`, which PyTorch's unpickler does not fill."""
    return collections.OrderedDict()


# Plain data that training scripts save beside weights. Files name them by the module of the version that wrote them.
PLAIN: list[Any] = [
    argparse.Namespace, SimpleNamespace, collections.OrderedDict, collections.Counter, set, frozenset, complex,
    (_without_factory, "collections.defaultdict"),
    datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone,
    np.ndarray, np.dtype, *_types_in(np.dtypes, "DType"),
    *((function, f"numpy.{core}.multiarray.{name}") for core in ("_core", "core")
      for function, name in ((np.float64(0).__reduce__()[0], "scalar"), (np.zeros(0).__reduce__()[0], "_reconstruct"))),
    *((pathlib.PurePosixPath, f"{module}.{name}") for module in ("pathlib", "pathlib._local")
      for name in ("PosixPath", "PurePosixPath", "Path")),
    *((pathlib.PureWindowsPath, f"{module}.{name}") for module in ("pathlib", "pathlib._local")
      for name in ("WindowsPath", "PureWindowsPath")),
]
# Configuration objects. Their own classes are not created, only their content is kept: the items of dictionaries, the
# state of nodes. Nodes refer to Python's types, which would be functions that a file could call.
DICTIONARIES = (
    "yacs.config.CfgNode", "fvcore.common.config.CfgNode", "easydict.EasyDict", "addict.addict.Dict", "box.box.Box",
    "munch.Munch", "mmengine.config.config.ConfigDict", "mmcv.utils.config.ConfigDict",
    "lightning_fabric.utilities.data.AttributeDict", "lightning.fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict", "lightning.pytorch.utilities.parsing.AttributeDict",
)
NODES = ("typing.Any",
         *(f"builtins.{name}" for name in ("dict", "list", "tuple", "str", "int", "float", "bool", "type")),
         "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig",
         "ml_collections.config_dict.config_dict.ConfigDict",
         *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata")),
         *(f"omegaconf.nodes.{name}Node" for name in ("Any", "Boolean", "Bytes", "Float", "Integer", "Path", "String",
                                                      "InterpolationResult")))
NODE_CONTENT = ("_content", "_val", "_fields")


@dataclass(frozen=True)
class Archive:
    """What a checkpoint holds: `content`, nested mappings with tensors as leaves, and the text `metadata` of a
    safetensors header. `files` are all that were read; of a sharded checkpoint, the index is the first."""

    content: Mapping[str, Any]
    metadata: Mapping[str, str]
    files: tuple[Path, ...]


def read_archive(path: Path) -> Archive:
    """Reads `path`, a file or a folder with WEIGHT_FILES, without running any code from it.

    Raises:
        CheckpointError: it is damaged, of another kind, or has more than tensors and plain data.
    """
    if path.is_dir():
        return read_archive(weights_in(path))
    if path.name.lower().endswith(INDEX):
        return _read_shards(path)
    if foreign := _foreign(path):
        raise CheckpointError(f"{path} is {foreign}")
    if path.suffix.lower() == ".safetensors" or is_safetensors(path):
        return _read_safetensors(path)
    content = _unpickle(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors; "
                              "save the model's state_dict().")
    return Archive(content, {}, (path,))


def weights_in(folder: Path) -> Path:
    """The file of weights in a folder of timm or transformers: a known name, else the only checkpoint.

    Raises:
        CheckpointError: there is none, or more than one.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES[CHECKPOINT] and file.is_file())
    if len(found) != 1:
        listed = ": " + ", ".join(file.name for file in found) if found else ""
        raise CheckpointError(f"{folder} holds {len(found) or 'no'} files of weights{listed}; name one file.")
    return found[0]


def read_json(path: Path) -> Any:
    """The JSON in a file beside the weights. Raises CheckpointError if it is none, see `untrusted.parse_json`."""
    try:
        return untrusted.read_json(path, finite=False)
    except ConfigError as error:
        raise CheckpointError(f"{path} is not JSON that can be read ({error}); copy it again, or remove it.") from error


def _read_shards(index: Path) -> Archive:
    """The tensors of all files that an index names; they must be beside it."""
    values = read_json(index)
    names = values.get("weight_map") if isinstance(values, Mapping) else None
    if not isinstance(names, Mapping) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index} has no weight_map of tensors to files; copy it again.")
    content: dict[str, Any] = {}
    shards = sorted(set(names.values()))
    for name in shards:
        if name != Path(name).name or name.startswith(".") or name.lower().endswith(INDEX):
            raise CheckpointError(f"{index} names the file {name[:LONGEST]!r}, which is not beside it; copy the folder "
                                  "again.")
        if not os.path.isfile(index.parent / name):
            raise CheckpointError(f"{index} names {name[:LONGEST]}, which is missing; copy the folder again.")
        read = read_archive(index.parent / name).content
        for tensor in [tensor for tensor, file in names.items() if file == name]:
            if tensor not in read:
                raise CheckpointError(f"{index} names the tensor {tensor!r}, which {name} does not have; copy the "
                                      "folder again.")
            content[tensor] = read[tensor]
    return Archive(content, {}, (index, *(index.parent / name for name in shards)))


def _read_safetensors(path: Path) -> Archive:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > LONGEST_HEADER:
        raise CheckpointError(f"{path} claims a header of {length:,} bytes, and at most {LONGEST_HEADER >> 20} MiB are "
                              "read; it is damaged or not safetensors, make or copy it again.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return Archive({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}, (path,))
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file ({reason(error)[:LONGEST]}); make or copy "
                              "it again.") from error


def _unpickle(path: Path) -> Any:
    configurations = [*((collections.OrderedDict, name) for name in DICTIONARIES), *((Opaque, name) for name in NODES)]
    try:
        with torch.serialization.safe_globals([*PLAIN, *configurations]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)|(?:global|class)\S* ([A-Za-z_]\w*\.[\w.]+)", str(error))
        if code:
            name = code.group(1) or code.group(2)
            raise CheckpointError(f"{path} contains code, {name}, which a checkpoint does not need; "
                                  "it was not run. Save the tensors alone: {'model': model.state_dict()}.") from error
        raise _unreadable(path) from error
    except MemoryError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); copy it again.") from error
    # A damaged file can raise any error.
    except Exception as error:
        raise _unreadable(path) from error


def _unreadable(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is not a checkpoint that PyTorch can read; it is damaged or of another kind, make "
                           "or copy it again.")


def _foreign(path: Path) -> str:
    """What the file is, if it is no checkpoint of PyTorch or safetensors; else empty."""
    with path.open("rb") as file:
        start = file.read(16)
    return foreign_kind(path, start) or (_foreign_zip(path) if start.startswith(b"PK\x03\x04") else "")


def _foreign_zip(path: Path) -> str:
    """See `_foreign`.

    Raises:
        CheckpointError: the archive would be many times the size of its file in memory.
    """
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
    # PyTorch then says what is wrong.
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return ""
    names, size = [entry.filename for entry in entries], path.stat().st_size
    if (unpacked := sum(entry.file_size for entry in entries)) > MOST_EXPANDED * size + (EXPANDED_MIB << 20):
        raise CheckpointError(f"{path} has {size / 2**20:.1f} MiB and would unpack to {unpacked / 2**20:.1f} MiB; "
                              "PyTorch does not compress weights, so it was not read. Save it again with torch.save.")
    if any(name.endswith("/constants.pkl") or name == "constants.pkl" for name in names):
        return ("a TorchScript archive, which contains code; save the weights of the Python model: "
                "torch.save(model.state_dict(), FILE).")
    if names and all(name.endswith(".npy") for name in names):
        return ("an .npz of NumPy arrays, such as JAX checkpoints of ViT; load it with timm (model.load_pretrained), "
                "and save model.state_dict().")
    if any(name.endswith("/models/model.json") or "archive_format" in name for name in names):
        return "an exported program (torch.export); save the weights: torch.save(model.state_dict(), FILE)."
    if any(name.endswith((".weights.h5", "config.json")) for name in names):
        return "a Keras model; load it there, and save a PyTorch state_dict()."
    return ""
