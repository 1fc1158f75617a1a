"""The files of ONNX graphs: one up to protobuf's limit of 2 GiB, above it NAME.onnx and NAME.onnx.data.

NAME.onnx.data holds the large weights (ONNX calls this external data). The graph records the name, size and sha256 of
its data file in the metadata property DATA_KEY, so that a data file of another export is noticed.
"""
from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypedDict

from ..artifacts.files import atomic_write, check_target, native_path, require_file, sha256, write_together
from ..errors import ArtifactError, ConfigError, foreign_errors, reason
from ..optional import require
from ..settings.untrusted import parse_json, typed
from . import limits

DATA_KEY = "dyvit_data"
# Constants up to this many elements may decide a shape; larger ones are weights.
SHAPE_ELEMENTS = 1024
# Larger tensors go to the data file. Those that may decide a shape stay in the graph, where shape inference reads them.
DATA_BYTES = 8 * SHAPE_ELEMENTS
# In every file with external data: the key of a tensor's entry that names the data file.
LOCATION = b"location"
BLOCK = 1 << 20


class DataFile(TypedDict):
    """What a graph records of its data file."""

    file: str
    bytes: int
    sha256: str


def data_path(path: str | Path) -> Path:
    """`NAME.onnx.data` of `NAME.onnx`."""
    path = Path(path)
    return path.with_name(path.name + ".data")


def fits_one_file(size: int) -> bool:
    """True if a graph with `size` bytes of weights fits into one file."""
    return size <= limits.ONE_FILE_LIMIT


def weight_bytes(proto: Any) -> int:
    """Bytes of all weights of a ModelProto, those in data files included."""
    return sum(_tensor_bytes(tensor) for tensor in proto.graph.initializer)


def _tensor_bytes(tensor: Any) -> int:
    try:
        size: int = math.ceil(math.prod(tensor.dims) * require("onnx_ir").DataType(tensor.data_type).itemsize)
        return size
    # Text has no fixed size, and is no weight.
    except (TypeError, ValueError):
        return 0


def parse_graph(path: str | Path) -> Any:
    """The ModelProto in the file `path` as it is, without what is in data files.

    Raises:
        ArtifactError: it is not an ONNX file.
    """
    def translated(error: Exception) -> ArtifactError:
        return ArtifactError(f"{path} is not a whole ONNX file ({reason(error)}); make or copy it again.")

    # protobuf and onnx share no base class.
    with foreign_errors(translated):
        return require("onnx").load(str(path), load_external_data=False)


def write_graph(proto: Any, path: str | Path, folder: str | None = None) -> None:
    """Writes a ModelProto to `path`, atomically: one file, or with its data file if it does not fit into one.

    A data file that only the replaced graph needed is removed.

    Args:
        folder: where the weights are that `proto` has in data files; None if it has all of them itself.

    Raises:
        ArtifactError: it cannot be written; nothing changed.
    """
    if folder is not None or not fits_one_file(weight_bytes(proto)):
        ir = require("onnx_ir")
        model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, folder or "")
        write_pair(model, path)
        return
    with _one_file(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())


def write_pair(model: Any, path: str | Path, check: bool = False) -> None:
    """Writes an onnx-ir model to `path` and its data file, see `write_together`; the hash in the graph reveals an
    interruption in between. `model` cannot be used afterwards: its weights are in the files.

    Raises:
        ArtifactError: see `check_pair_target`; or they cannot be written; nothing changed.
        onnx.checker.ValidationError: `check`, and it is not valid ONNX.
    """
    onnx, ir = require("onnx"), require("onnx_ir")
    path, data = check_pair_target(path), data_path(path)
    # In a folder of their own, the two have their final names, by which the checker finds the data.
    with write_together(path, data) as (graph, weights):
        ir.external_data.unload_from_model(model, graph.parent, data.name, size_threshold_bytes=DATA_BYTES)
        model.metadata_props[DATA_KEY] = json.dumps(
            {"file": data.name, "bytes": weights.stat().st_size, "sha256": sha256(weights)})
        graph.write_bytes(ir.to_proto(model).SerializeToString())
        if check:
            onnx.checker.check_model(native_path(graph))


def check_pair_target(path: str | Path) -> Path:
    """`path`, if a graph and its data file can be written there; call it before long work.

    Raises:
        ArtifactError: it is a folder, link or device, or a file that it does not own has the name of its data file.
    """
    path, data = check_target(path), data_path(path)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ArtifactError(f"{path} is a link or a device, and a graph above 2 GiB is two files in one folder; name "
                            "a file with -o.")
    if os.path.lexists(data) and _own_data(path) is None:
        raise ArtifactError(f"{data} exists and would be overwritten, because a graph above 2 GiB is two files; "
                            "choose another -o.")
    return path


def copy_graph(source: str | Path, target: str | Path) -> None:
    """Copies a graph to `target`, atomically; its data files become one, named after `target`.

    Raises:
        ArtifactError: see `data_files`; or it cannot be written.
    """
    if data_files(source):
        write_pair(require("onnx_ir").load(os.path.realpath(source)), target)
        return
    with _one_file(target) as temporary:
        shutil.copyfile(source, temporary)


@contextlib.contextmanager
def _one_file(path: str | Path) -> Iterator[Path]:
    """A temporary path for a graph in one file, which replaces `path`; the data file of a replaced graph is removed."""
    own = _own_data(path)
    if own is None:
        with atomic_write(path) as temporary:
            yield temporary
    else:
        with write_together(path, obsolete=own) as (draft,):
            yield draft


def _own_data(path: str | Path) -> Path | None:
    """The data file of the graph that is at `path` already, if it is there and dyvit wrote it."""
    path = Path(os.path.realpath(path))
    data = data_path(path)
    if not data.is_file() or not path.is_file():
        return None
    try:
        recorded = _recorded(path, parse_graph(path))
    # Whatever the data file belongs to, it is not this.
    except ArtifactError:
        return None
    return data if recorded and recorded["file"] == data.name else None


def data_files(path: str | Path) -> tuple[Path, ...]:
    """The checked data files of the graph in the file `path`, none if all is in one file; see `check_data`.

    Raises:
        ArtifactError: `path` is missing or is not an ONNX file, or a data file cannot be used.
    """
    return check_data(path, parse_graph(path)) if _names_data(require_file(path)) else ()


def _names_data(path: Path) -> bool:
    """False if the file surely has no external data. Its bytes are searched, because weights take long to parse."""
    end = b""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            if LOCATION in end + block:
                return True
            end = block[-len(LOCATION):]
    return False


def check_data(path: str | Path, proto: Any) -> tuple[Path, ...]:
    """The data files that `proto`, the graph in the file `path`, needs; a link to the graph is followed.

    Raises:
        ArtifactError: a data file is not beside the graph, or misses or exceeds its bytes; or it is not the file that
            dyvit wrote with this graph.
    """
    path, sizes = Path(os.path.realpath(path)), dict[Path, int]()
    for tensor in _tensors(proto):
        if tensor.data_location == tensor.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            file = _beside(path, entries.get("location", ""))
            if file not in sizes:
                sizes[file] = _size(path, file)
            _check_bytes(path, file, sizes[file], tensor, entries)
    if sizes and (recorded := _recorded(path, proto)):
        for file, size in sizes.items():
            if (file.name, size) != (recorded["file"], recorded["bytes"]) or _digest(file) != recorded["sha256"]:
                raise ArtifactError(f"{file} is not the file that {path.name} was written with; copy both again, or "
                                    "repeat the command that writes them if it was interrupted.")
    return tuple(sizes)


def load_data(path: str | Path, proto: Any, largest: int | None = None) -> None:
    """Loads tensors from the data files of `proto`, which `check_data` has accepted, in place.

    Args:
        largest: leave out tensors with more elements.

    Raises:
        ArtifactError: a data file cannot be read.
    """
    def translated(error: Exception) -> ArtifactError:
        return ArtifactError(f"The weights of {path} cannot be read ({reason(error)}); make or copy it again, with its "
                             "data file.")

    helper, folder = require("onnx.external_data_helper"), os.path.dirname(os.path.realpath(path))
    for tensor in _tensors(proto):
        if tensor.data_location == tensor.EXTERNAL and (largest is None or math.prod(tensor.dims) <= largest):
            # onnx raises errors of its own for what it does not read.
            with foreign_errors(translated):
                helper.load_external_data_for_tensor(tensor, folder)
    if largest is None:
        # It describes a file, and the graph is in memory now.
        for entry in [entry for entry in proto.metadata_props if entry.key == DATA_KEY]:
            proto.metadata_props.remove(entry)


def has_data(proto: Any) -> bool:
    """True if `proto` has tensors in data files."""
    return any(tensor.data_location == tensor.EXTERNAL for tensor in _tensors(proto))


def _digest(file: Path) -> str:
    status = file.stat()
    return _digest_of(file, status.st_ino, status.st_size, status.st_mtime_ns)


# One command opens a graph several times, and hashing gigabytes takes seconds.
@functools.lru_cache(maxsize=8)
def _digest_of(file: Path, *_version: int) -> str:
    return sha256(file)


def _tensors(proto: Any) -> Iterator[Any]:
    """Every tensor in a ModelProto, those of subgraphs and functions included."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[Any]) -> Iterator[Any]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        if attribute.HasField("sparse_tensor"):
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        yield from attribute.tensors
        for sparse in attribute.sparse_tensors:
            yield from (sparse.values, sparse.indices)
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _graph_tensors(graph)


def _beside(path: Path, location: str) -> Path:
    """The data file `location`, without touching it. A graph from elsewhere could name any file of this machine."""
    if location in ("", ".", "..") or not location.isprintable() or set(location) & set("/\\:"):
        raise ArtifactError(f"{path} keeps weights in {location!r}, and only files beside it are read; put that file "
                            "there, and save the graph again with its plain name.")
    return path.with_name(location)


def _size(path: Path, file: Path) -> int:
    if file.is_symlink():
        raise ArtifactError(f"{file} is a link, and weights are read only from files beside {path.name}; put the file "
                            "itself there.")
    if not file.is_file():
        raise ArtifactError(f"{file} is missing; {path.name} has its weights there, copy both files without renaming "
                            f"{file.name}, or repeat the command that writes them if it was interrupted.")
    return file.stat().st_size


def _check_bytes(path: Path, file: Path, size: int, tensor: Any, entries: dict[str, str]) -> None:
    """Raises ArtifactError unless the bytes of `tensor` are in the data file of `size` bytes."""
    wanted = _tensor_bytes(tensor)
    try:
        start, length = int(entries.get("offset", 0)), int(entries.get("length", wanted))
    except ValueError:
        start = length = -1
    if start < 0 or length != wanted:
        raise ArtifactError(f"{path} is damaged: the place of {tensor.name!r} in {file.name} is not one of its shape; "
                            "make or copy it again.")
    if start + length > size:
        raise ArtifactError(f"{file} has {size} bytes, and {path.name} needs {start + length} of it: it was not copied "
                            "to the end, or is another file; copy both again.")


def _recorded(path: Path, proto: Any) -> dict[str, Any] | None:
    """Name, size and hash of the data file that a graph of dyvit was written with; None if it was written without."""
    text = next((entry.value for entry in proto.metadata_props if entry.key == DATA_KEY), None)
    if text is None:
        return None
    try:
        found: dict[str, Any] = typed(parse_json(text), DataFile, DATA_KEY)
        return found
    except ConfigError as error:
        raise ArtifactError(f"The dyvit metadata in {path} cannot be read ({error}); export it again.") from error
