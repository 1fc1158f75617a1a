"""From float32 graphs to int8 and float8: what is quantized, with which ranges, at what cost."""
