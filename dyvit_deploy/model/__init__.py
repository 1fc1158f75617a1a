"""DynamicViT in PyTorch: token maths, predictors, timm adapter, checkpoints."""
