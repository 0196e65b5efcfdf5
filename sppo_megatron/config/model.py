"""The policy's model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sppo_megatron.config.keys import MISSING, AtLeastOne, Fixed, Free, NextIteration, NotNegative, UserPath

Granularity = Literal["selective", "full"]


@dataclass
class ModelConfig:
    """The policy's model, by its Hugging Face folder."""

    hf_path: Fixed[UserPath] = MISSING
    "Local folder or hub id with `config.json`, the tokenizer, and with init=hf the weights; or a GGUF file."
    init: Fixed[Literal["hf", "random"]] = "hf"
    "Where the first weights come from: the folder, or random numbers by train.seed."
    make_vocab_size_divisible_by: Free[AtLeastOne[int]] = 128
    "The vocabulary is padded to a multiple of this × tensor_model_parallel_size."
    recompute_granularity: Free[Granularity | None] = None
    "What of the activations is computed again in the backward pass. Megatron's fields, as the next two."
    recompute_method: Free[Literal["uniform", "block"]] = "uniform"
    "Which layers are recomputed with recompute_granularity=full."
    recompute_num_layers: Free[AtLeastOne[int]] = 1
    "Layers of one recomputed block."
    moe_aux_loss_coeff: NextIteration[NotNegative[float] | None] = 0.0
    """Weight of the load-balancing loss of a mixture of experts, averaged over micro-batches and added to the
    objective's; null = the Hugging Face config's router_aux_loss_coef. At 0 the loss is the objective's alone, exact in
    every layout; the balance is that of one micro-batch, so above 0 the result depends on how the mini-batch is cut."""
    moe_expert_bias_update_rate: NextIteration[NotNegative[float]] = 0.0
    """By how much a step moves each bias of the experts' choice (DeepSeek-V3, GLM-4.5) towards an even load; 0: the
    biases stay as they are."""
