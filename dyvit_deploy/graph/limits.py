"""Limits of formats and runtimes on ONNX graphs."""
from __future__ import annotations

# The largest K of a TopK that TensorRT takes, in every version so far.
MAX_K = 3840
# Bytes of one ONNX file: protobuf's limit.
ONE_FILE_LIMIT = 2**31 - 1
