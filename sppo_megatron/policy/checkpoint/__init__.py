"""Training checkpoints and checkpoints of weights alone."""
