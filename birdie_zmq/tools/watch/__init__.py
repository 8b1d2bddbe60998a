"""Following a training run: evaluate each of its checkpoints once it is complete."""
