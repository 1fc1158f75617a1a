"""Checkpoints to artifacts that were checked where they run."""
