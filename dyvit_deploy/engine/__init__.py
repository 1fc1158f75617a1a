"""Everything that is TensorRT's: plans are built, described and judged here, and run by `runners.tensorrt`."""
