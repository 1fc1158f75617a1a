"""Inspection of artifacts, and of what this machine can run."""
