"""Trains predictors and backbone together (paper, section 3.3)."""
