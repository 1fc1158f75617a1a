"""The disk contract: what an artifact records about itself, and how files are written."""
