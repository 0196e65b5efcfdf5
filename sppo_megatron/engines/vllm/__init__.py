"""vLLM inside the training ranks."""
