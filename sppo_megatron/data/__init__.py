"""Data: prompts, rollout files and the batches made of them."""
