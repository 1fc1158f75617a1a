"""ONNX graphs: what they hold, and what their nodes are called."""
