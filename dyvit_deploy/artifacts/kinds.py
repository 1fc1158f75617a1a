"""What kind of artifact a path is: by its suffix, or by its first bytes where the suffix says nothing."""
from __future__ import annotations

import os
import re
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
# What timm and transformers write beside weights.
CONFIGURATIONS = (CONFIG, "preprocessor_config.json")
_BY_SUFFIX = {suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes}
_CHECKPOINT_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_ENGINE_STARTS = (b"ftrt", b"vtrt")
_ENGINE = "an engine plan; name the checkpoint that it was exported from."
_TENSORFLOW = "a TensorFlow checkpoint or graph; load it there, and save a PyTorch state_dict()."
# What a file is that has no weights for PyTorch, and what to do: by its first bytes, and by its suffix.
FOREIGN_STARTS = {
    b"GGUF": "a GGUF file of llama.cpp, which has no vision transformer of timm; name the PyTorch checkpoint.",
    b"\x89HDF": "an HDF5 file of Keras or TensorFlow; load it there, and save a PyTorch state_dict().",
    b"\x93NUMPY": "a NumPy array; save the tensors by name: torch.save(state_dict, FILE).",
    **dict.fromkeys(_ENGINE_STARTS, _ENGINE),
}
FOREIGN_SUFFIXES = {
    ".onnx": "an ONNX file; name the checkpoint that it was exported from, or rename it to .onnx to run it.",
    ".plan": _ENGINE, ".engine": _ENGINE,
    ".xml": "an OpenVINO model; name the checkpoint that it was exported from.",
    ".msgpack": "a Flax file; load it with transformers (from_flax=True), and save it again.",
    ".index": _TENSORFLOW, ".pb": _TENSORFLOW, ".tflite": "a TensorFlow Lite model; name the PyTorch checkpoint.",
    ".npz": "an .npz of NumPy arrays, such as JAX checkpoints of ViT; load it with timm (model.load_pretrained), and "
            "save model.state_dict().",
    ".npy": "a NumPy array; save the tensors by name: torch.save(state_dict, FILE).",
    ".h5": "an HDF5 file of Keras or TensorFlow; load it there, and save a PyTorch state_dict().",
    ".keras": "a Keras model; load it there, and save a PyTorch state_dict().",
    ".gguf": "a GGUF file of llama.cpp, which has no vision transformer of timm; name the PyTorch checkpoint.",
}


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


def foreign_kind(path: str | Path, start: bytes = b"") -> str:
    """What `path`, whose first bytes are `start`, is and what to do, if it has no weights for PyTorch; else empty."""
    name = os.path.basename(os.fspath(path)).lower()
    by_start = next((what for magic, what in FOREIGN_STARTS.items() if start.startswith(magic)), "")
    suffix = ".index" if re.search(r"\.data-\d+-of-\d+$", name) else os.path.splitext(name)[1]
    graph = FOREIGN_SUFFIXES[".onnx"] if starts_like_onnx(start) else ""
    return by_start or FOREIGN_SUFFIXES.get(suffix, "") or graph


def is_safetensors(path: Path) -> bool:
    """True if a file begins like safetensors: with the length of a JSON header, then the header."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _by_content(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            start = file.read(16)
        if is_safetensors(path):
            return CHECKPOINT
    except OSError:
        return None
    if os.path.splitext(path.name)[1].lower() in FOREIGN_SUFFIXES:
        return None
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
