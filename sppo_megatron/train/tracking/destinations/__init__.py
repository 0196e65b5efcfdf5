"""Where metrics go besides metrics.jsonl: one file each, and one line in the registry."""
