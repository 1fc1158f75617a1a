"""Artifacts into services: Triton model repositories, and checks of a server that runs them."""
