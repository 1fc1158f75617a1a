"""Limits of formats and runtimes on ONNX graphs."""
from __future__ import annotations

# The largest K of a TopK that TensorRT takes, in every version so far.
MAX_K = 3840
# Bytes of weights in one ONNX file. Protobuf's limit is 2 GiB for the whole file; the rest is for the nodes.
ONE_FILE_LIMIT = 2**31 - 2**26
