"""From scored groups to micro-batches: targets, the gate, samples, pairs, mini-batches, micro-batches."""
