"""Generating and scoring rollout files: the stages of an iteration as commands of their own, on any machine."""
