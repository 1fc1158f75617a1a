"""What an artifact is, and what this machine can run."""
