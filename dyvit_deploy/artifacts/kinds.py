"""What kind of artifact a path is: by its suffix, or by its first bytes where the suffix says nothing."""
from __future__ import annotations

import os
from pathlib import Path

from .files import CONFIG, is_timm

CHECKPOINT, ONNX, OPENVINO, ENGINE = "checkpoint", "onnx", "openvino", "engine"
SUFFIXES = {
    CHECKPOINT: (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar"),
    ONNX: (".onnx",),
    OPENVINO: (".xml",),
    ENGINE: (".plan", ".engine", ".trt"),
}
# Of sharded weights; it maps tensors to files.
INDEX = ".index.json"
_BY_SUFFIX = {suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes}
# Of files that `checkpoints.archive` reads, or names for what they are.
_CHECKPOINT_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"GGUF", b"\x89HDF")
_ENGINE_STARTS = (b"ftrt", b"vtrt")


def kind_of(path: str | Path) -> str | None:
    """CHECKPOINT, ONNX, OPENVINO, ENGINE, or None.

    A folder with a configuration of timm or transformers is a checkpoint, and so is `timm:NAME`.
    """
    if is_timm(path):
        return CHECKPOINT
    name = os.path.basename(os.fspath(path)).lower()
    if os.path.isdir(path):
        return CHECKPOINT if os.path.isfile(os.path.join(path, CONFIG)) else None
    if name.endswith(INDEX):
        return CHECKPOINT
    return _BY_SUFFIX.get(os.path.splitext(name)[1]) or _by_content(Path(path))


def _by_content(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            start = file.read(16)
            size = os.fstat(file.fileno()).st_size
    except OSError:
        return None
    # safetensors: the length of the JSON header, then the header.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size:
        return CHECKPOINT
    if start.startswith(_CHECKPOINT_STARTS):
        return CHECKPOINT
    if start.startswith(_ENGINE_STARTS):
        return ENGINE
    if start.lstrip().startswith(b"<?xml"):
        return OPENVINO
    return ONNX if starts_like_onnx(start) else None


def starts_like_onnx(start: bytes) -> bool:
    """True if these first bytes may be those of a ModelProto: field 1, the IR version, then another field of it."""
    if len(start) < 3 or start[:1] != b"\x08" or not 0 < start[1] < 32:
        return False
    # The tag of a field: its number and its wire type, which is a number or bytes.
    return 2 <= start[2] >> 3 <= 25 and start[2] & 7 in (0, 2)
