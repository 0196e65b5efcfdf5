"""The training loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sppo_megatron.config.keys import AtLeastOne, Fixed, Free, NextIteration, NotNegative, Positive

if TYPE_CHECKING:
    from sppo_megatron.config.schema import Config


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
    shared_prompts: NextIteration[Literal[False, True, "auto"]] = False
    """Feed the tokens of a prompt once for all of its responses in a micro-batch, which then lie on one rank; auto does
    so where whole sequences would be more than 1.2 times as many tokens. Responses are then shuffled prompt by prompt.
    Needs max_tokens_per_micro_batch."""
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


def check_train(config: Config) -> Iterator[str]:
    if not config.train.shared_prompts:
        return
    if config.train.max_tokens_per_micro_batch is None:
        yield "train.shared_prompts needs packed micro-batches: set train.max_tokens_per_micro_batch"
    if config.parallelism.context_parallel_size > 1:
        yield (
            f"parallelism.context_parallel_size={config.parallelism.context_parallel_size} leaves no rank a whole "
            "prompt: set train.shared_prompts=false, or the size to 1"
        )
