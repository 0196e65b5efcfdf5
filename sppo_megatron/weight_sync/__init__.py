"""Weight sync: the trainer's weights go to the rollout engine."""
