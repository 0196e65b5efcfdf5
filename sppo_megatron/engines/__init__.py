"""Who samples: an engine takes token ids and gives token ids and log-probs; it owns its weights and its processes."""
