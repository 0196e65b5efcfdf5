"""What the host does while GPUs wait: CPU time and memory a million response tokens, at growing sizes."""
