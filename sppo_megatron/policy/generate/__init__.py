"""Generation with the weights that are being trained."""
