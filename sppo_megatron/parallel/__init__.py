"""Log-probs and sums that are split over ranks. Torch only; process groups are arguments, never globals.

vocab_log_probs.py     log-probs and entropy from sharded logits
linear_log_probs.py    the same from hidden states and the sharded LM head, without a [tokens, vocabulary] tensor
linear_sppo_loss.py    the regression loss itself from the same, with every logit computed once
softmax_statistics.py  what they are made of: online log-sum-exp, its merge over ranks, the gradient of a logits tile
logit_tiles.py         how large a tile of logits is, its buffer, and the matrix products around it
linear_gradient.py     from gradients of logit tiles to those of hidden states and head; the sum over ranks
main_grad.py           Megatron's protocol for adding to a weight's main_grad
sequence_groups.py     which sequences keep their logits together, under a budget
kernels/               Triton kernels over a tile of logits, and when they are used
vocab_shard.py         which columns a rank holds; argument checks
sequence.py            sequence sums over context-parallel ranks; their load-balanced layout
reduce.py              global sums and maxima of many scalars in one collective
"""

from .linear_log_probs import vocab_parallel_linear_log_probs
from .linear_sppo_loss import LinearSppoLoss, linear_sppo_loss
from .reduce import reduce_max, reduce_sums
from .sequence import sequence_sum, zigzag_indices
from .vocab_log_probs import vocab_parallel_log_probs

__all__ = [
    "LinearSppoLoss",
    "linear_sppo_loss",
    "reduce_max",
    "reduce_sums",
    "sequence_sum",
    "vocab_parallel_linear_log_probs",
    "vocab_parallel_log_probs",
    "zigzag_indices",
]
