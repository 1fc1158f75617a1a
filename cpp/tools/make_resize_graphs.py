#!/usr/bin/env python3
"""Writes cpp/src/resize_graphs.inc: the ONNX graphs by which the C++ runtime resizes images.

    python cpp/tools/make_resize_graphs.py            rewrite the file
    python cpp/tools/make_resize_graphs.py --check    exit 1 when it is out of date

ONNX Runtime's Resize with antialias and exclude_outside matches Pillow: shrunk photos differ by one level in one of
8,000 values (bicubic) or of 800 (bilinear); without exclude_outside the borders differ. There is one graph per
interpolation, with the inputs `image` uint8 [height, width, 3] and `sizes` int64 [4], which is (1, 3, new height, new
width), and the output `resized` uint8 [new height, new width, 3].
"""
from __future__ import annotations

import sys
from pathlib import Path

from onnx import TensorProto, checker, helper

TARGET = Path(__file__).parent.parent / "src" / "resize_graphs.inc"
MODES = {"bilinear": {"mode": "linear"}, "bicubic": {"mode": "cubic", "cubic_coeff_a": -0.5}}
# 18 is the first opset with antialias.
IR_VERSION, OPSET = 8, 18
PER_LINE = 24


def resize_graph(interpolation: str) -> bytes:
    """The serialized graph of one of MODES."""
    def value(name: str, kind: int, shape: list[str | int]):
        return helper.make_tensor_value_info(name, kind, shape)

    nodes = [
        helper.make_node("Unsqueeze", ["image", "first"], ["batch"]),
        helper.make_node("Transpose", ["batch"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Resize", ["planes", "", "", "sizes"], ["scaled"], antialias=1, exclude_outside=1,
                         coordinate_transformation_mode="half_pixel", **MODES[interpolation]),
        helper.make_node("Transpose", ["scaled"], ["pixels"], perm=[0, 2, 3, 1]),
        helper.make_node("Squeeze", ["pixels", "first"], ["resized"]),
    ]
    graph = helper.make_graph(
        nodes, interpolation,
        [value("image", TensorProto.UINT8, ["height", "width", 3]), value("sizes", TensorProto.INT64, [4])],
        [value("resized", TensorProto.UINT8, ["new_height", "new_width", 3])],
        [helper.make_tensor("first", TensorProto.INT64, [1], [0])])
    model = helper.make_model(graph, producer_name="dyvit", ir_version=IR_VERSION,
                              opset_imports=[helper.make_opsetid("", OPSET)])
    checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def as_cpp(name: str, content: bytes) -> str:
    lines = [", ".join(str(byte) for byte in content[i:i + PER_LINE]) for i in range(0, len(content), PER_LINE)]
    return f"const unsigned char {name}_graph[] = {{\n    " + ",\n    ".join(lines) + "};\n"


def main() -> None:
    text = "// Made by cpp/tools/make_resize_graphs.py; do not edit.\n\n"
    text += "\n".join(as_cpp(mode, resize_graph(mode)) for mode in MODES)
    if "--check" in sys.argv[1:]:
        sys.exit(not TARGET.exists() or TARGET.read_text() != text)
    TARGET.write_text(text)


if __name__ == "__main__":
    main()
