"""Image sources (folders, shards, Hugging Face data sets, digit scenes, noise) and the preprocessing of checkpoints."""
