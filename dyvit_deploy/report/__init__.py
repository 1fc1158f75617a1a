"""What is pruned, to be looked at: figures per image, and one page about a set of artifacts."""
