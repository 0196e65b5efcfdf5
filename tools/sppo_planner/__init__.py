"""The layout planner: memory, communication and time of a run, estimated before any GPU is used."""
