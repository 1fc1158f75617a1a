"""TensorRT engines: building, describing and checking plans. `runners.tensorrt` runs them."""
