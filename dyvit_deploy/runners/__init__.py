"""One interface for every backend that can run a model."""
