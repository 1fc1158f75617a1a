"""Images in: folders, the digit scenes, noise, and the preprocessing that checkpoints demand."""
