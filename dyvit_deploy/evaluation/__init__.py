"""Evaluation of artifacts on labelled images: accuracy, calibration, and which patches are kept."""
