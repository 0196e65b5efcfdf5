"""Rewards: groups of responses in, the same groups with rewards out; then the targets of the regression."""
