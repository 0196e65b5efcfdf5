"""The training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sppo_megatron.config.keys import AtLeastOne, Fixed, Free, NextIteration, NotNegative, Positive


@dataclass
class TrainConfig:
    """Iterations, epochs, mini-batches and micro-batches."""

    iterations: Free[AtLeastOne[int]] = 100
    "Iterations of the whole run: rollouts, then training on them."
    prompts_per_iteration: NextIteration[AtLeastOne[int] | None] = 32
    "Prompts of one iteration; null = all groups of each file of a replay."
    epochs_per_iteration: NextIteration[AtLeastOne[int]] = 1
    "How often an iteration's responses are trained on."
    minibatch_size: NextIteration[AtLeastOne[int] | None] = None
    "Sequences of one optimizer step over all data-parallel ranks; null = the whole iteration."
    micro_batch_size: Free[AtLeastOne[int]] = 1
    "Sequences of one padded micro-batch."
    max_tokens_per_micro_batch: Free[AtLeastOne[int] | None] = None
    """Packs sequences (THD) under this budget of tokens, over all context-parallel ranks together; micro_batch_size is
    then not read."""
    fused_loss: Free[bool] = True
    """Compute the regression loss in the LM head, which keeps the logits of whole sequences as far as logits_budget_mib
    allows and computes only those of longer ones twice. false computes log-probs first, then the loss."""
    logits_budget_mib: Free[Positive[float]] = 512.0
    "MiB of logits that the fused loss keeps on each rank."
    log_prob_chunk_size: Free[AtLeastOne[int] | None] = None
    "Response tokens that the LM head works on at a time; null = chosen from shapes and device."
    log_prob_kernels: Free[Literal["auto", "torch", "triton"]] = "auto"
    "Which kernels compute log-probs; auto = Triton on CUDA if it is installed, else torch."
    shuffle: Fixed[bool] = True
    "Draw the prompts of each epoch over the data, and the sequences of each epoch over an iteration, in random order."
    seed: Fixed[NotNegative[int]] = 1234
    "Of the order of prompts and sequences, of dropout and of model.init=random."
