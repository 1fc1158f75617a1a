"""DynamicViT in PyTorch: token operations, selectors, the adapter to timm, checkpoints."""
