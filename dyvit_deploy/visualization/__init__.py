"""Figures of the patches that a model keeps and drops."""
