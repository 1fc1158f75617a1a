"""From checkpoints to graphs that other runtimes load."""
