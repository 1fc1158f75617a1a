"""One shape for every backend that can run a model."""
