"""Writes an ONNX graph as OpenVINO IR: .xml with its .bin."""
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..artifacts.facts import METADATA_KEY, ArtifactFacts
from ..artifacts.files import sha256, write_together
from ..artifacts.locks import scratch_folder
from ..errors import ExportError, reason
from ..optional import require
from ..runners.openvino import WEIGHTS_KEY


def write_openvino(graph: str | Path, path: str | Path, facts: ArtifactFacts) -> None:
    """Converts the ONNX file `graph` to `path` (.xml) and the .bin beside it, with `facts` in the rt_info.

    Weights stay as they are, none is compressed to float16.

    Raises:
        ExportError: OpenVINO cannot convert the graph.
    """
    openvino = require("openvino", extra="openvino")
    path = Path(path)
    with scratch_folder("openvino") as folder:
        draft = folder / "model.xml"
        try:
            model = openvino.Core().read_model(str(graph))
        except RuntimeError as error:
            raise ExportError(f"OpenVINO cannot convert {graph} ({reason(error, last=True)}); "
                              "export it as ONNX instead.") from error
        _name_by_position(model)
        openvino.save_model(model, str(draft), compress_to_fp16=False)
        # The .xml records the hash of its .bin, so that a .bin of another export is noticed.
        model.set_rt_info(sha256(draft.with_suffix(".bin")), WEIGHTS_KEY)
        model.set_rt_info(facts.to_json(), METADATA_KEY)
        openvino.save_model(model, str(draft), compress_to_fp16=False)
        copy_openvino(draft, path)


def copy_openvino(source: Path, target: Path) -> None:
    """Copies an .xml and its .bin, see `write_together`; the hash in the .xml reveals an interruption in between."""
    with write_together(target, target.with_suffix(".bin")) as drafts:
        for file, draft in zip((source, source.with_suffix(".bin")), drafts):
            shutil.copyfile(file, draft)


def _name_by_position(model: Any) -> None:
    """Replaces names that OpenVINO numbers over the whole process, so that equal exports are equal files."""
    for position, operation in enumerate(model.get_ordered_ops()):
        if operation.get_friendly_name() == operation.get_name():
            operation.set_friendly_name(f"{operation.get_type_name()}_{position}")
