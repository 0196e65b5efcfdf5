"""Rollouts: prompts in, groups of responses with their log-probs out."""
