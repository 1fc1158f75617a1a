"""Checkpoint files as training leaves them: containers, sets of weights, names of tensors, configurations."""
