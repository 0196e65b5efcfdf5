"""Tracking: what a run tells its user, in files and on the console."""
