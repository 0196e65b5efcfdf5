"""Hugging Face <-> Megatron weights: one table (`mapping`), both directions, streamed. Knows names, not modules."""
