"""Figures of which patches a model drops."""
