"""Finds the best artifact of a checkpoint for a budget: keep ratio x precision x backend x batch."""
