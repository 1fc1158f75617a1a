"""Predicts the classes of many images with any artifact, on one machine or on a cluster."""
