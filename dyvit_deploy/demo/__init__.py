"""The demo: checkpoints that come with the package, and the pipeline on them."""
