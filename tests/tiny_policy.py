"""A small policy with random weights in this process, and a batch for it, as the trainer would build them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch.distributed as dist
from transformers import Qwen2Config

from sppo_megatron.batch.sequences import make_sequences
from sppo_megatron.batch.training_batch import TrainingBatch, regression_columns, single_units
from sppo_megatron.config import Config
from sppo_megatron.hf.hf_checkpoint import RandomTensors
from sppo_megatron.hf.hf_config import load_hf_config, read_architecture
from sppo_megatron.hf.mapping import hf_shapes, parameter_layouts
from sppo_megatron.policy.initialize import destroy_model_parallel, initialize_model_parallel, local_device
from sppo_megatron.policy.model.mapped import MappedModel
from sppo_megatron.policy.policy import Policy

VOCAB_SIZE = 256
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


@contextmanager
def tiny_policy(run: Config, **sizes: int | bool) -> Iterator[Policy]:
    """A Qwen2 whose sides FP8 products can take, on one rank. The process group ends with it."""
    device = local_device()
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=0, world_size=1, store=dist.HashStore())
    policy = None
    try:
        with tempfile.TemporaryDirectory() as folder:
            Qwen2Config(**(SIZES | sizes)).save_pretrained(folder)
            architecture = read_architecture(load_hf_config(folder))
        groups = initialize_model_parallel(run.parallelism, seed=0)
        shapes = hf_shapes(parameter_layouts(architecture, architecture.vocab_size))
        tensors = RandomTensors(shapes, initializer_range=0.05, seed=0)
        model = MappedModel(architecture, tensors, run.model.make_vocab_size_divisible_by)
        policy = Policy(run, model, groups, total_steps=100)
        yield policy
    finally:
        if policy is not None:
            policy.close()
        destroy_model_parallel()
        dist.destroy_process_group()


def random_batch(count: int, longest: int = 40, seed: int = 0) -> TrainingBatch:
    """Prompts and responses of 1 to `longest` tokens, with targets of both signs; π_t not yet frozen."""
    random = np.random.default_rng(seed)

    def tokens() -> np.ndarray:
        return random.integers(0, VOCAB_SIZE, int(random.integers(1, longest + 1))).astype(np.int32)

    drawn = [(tokens(), tokens(), float(random.normal())) for _ in range(count)]
    sequences = make_sequences([prompt for prompt, _, _ in drawn], [response for _, response, _ in drawn])
    columns = regression_columns(np.array([target for _, _, target in drawn]))
    minibatches = (single_units(count),)
    return TrainingBatch(sequences, np.zeros(sequences.total, np.float32), columns, minibatches=minibatches)


def frozen(batch: TrainingBatch, policy: Policy) -> TrainingBatch:
    """The batch with π_t as the policy is now."""
    return replace(batch, old_log_probs=policy.compute_log_probs(batch.sequences)[0])
