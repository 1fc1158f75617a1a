"""Shares of images: exact comparison with a bound, confidence intervals, and how many images would decide."""
