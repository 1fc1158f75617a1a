"""Measures how fast an artifact is, and how much of the speed-up expected from pruning it reaches."""
