"""Log-probs and sums that are split over ranks. Torch only; process groups are arguments, never globals.

vocab_log_probs.py     log-probs and entropy from sharded logits
linear_log_probs.py    the same from hidden states and the sharded LM head, without a [tokens, vocabulary] tensor
softmax_statistics.py  what both are made of: online log-sum-exp, its merge over ranks, the gradient of a logits tile
vocab_shard.py         which columns a rank holds; argument checks
sequence.py            sequence sums over context-parallel ranks; their load-balanced layout
reduce.py              global sums and maxima of many scalars in one collective
"""

from .linear_log_probs import vocab_parallel_linear_log_probs
from .reduce import reduce_max, reduce_sums
from .sequence import sequence_sum, zigzag_indices
from .vocab_log_probs import vocab_parallel_log_probs

__all__ = [
    "reduce_max",
    "reduce_sums",
    "sequence_sum",
    "vocab_parallel_linear_log_probs",
    "vocab_parallel_log_probs",
    "zigzag_indices",
]
