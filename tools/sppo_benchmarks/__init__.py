"""Benchmarks: log-probs, a training step and rollout engines, each side by side with what else does the same."""
