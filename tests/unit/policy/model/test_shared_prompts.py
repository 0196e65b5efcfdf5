"""A policy whose responses share prompts against the same policy that sees whole sequences."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sppo_megatron.batch.sequences import make_sequences
from sppo_megatron.batch.shared_prompts import Segments
from sppo_megatron.batch.training_batch import TrainingBatch, regression_columns, single_units
from sppo_megatron.config import Config
from sppo_megatron.errors import ConfigError
from sppo_megatron.policy.model import shared_prompts
from tests.tiny_policy import VOCAB_SIZE, tiny_policy

from megatron.core.transformer.transformer_config import TransformerConfig  # isort: skip

GROUPS = [(30, [5, 1, 12, 0]), (3, [4, 4]), (17, [9])]


def shared_run() -> Config:
    run = Config()
    run.precision.dtype = "fp32"
    run.train.max_tokens_per_micro_batch, run.train.shared_prompts = 256, True
    return run


def batch_of(prompt_of: list[int] | None, seed: int = 0) -> TrainingBatch:
    """prompt_of: None for a copy of its prompt for each response."""
    random = np.random.default_rng(seed)
    prompts = [random.integers(0, VOCAB_SIZE, prompt).astype(np.int32) for prompt, _ in GROUPS]
    of_each = [number for number, (_, lengths) in enumerate(GROUPS) for _ in lengths]
    responses = [random.integers(0, VOCAB_SIZE, n).astype(np.int32) for _, lengths in GROUPS for n in lengths]
    if prompt_of is None:
        sequences = make_sequences([prompts[number] for number in of_each], responses)
    else:
        sequences = make_sequences(prompts, responses, prompt_of)
    columns = regression_columns(random.normal(size=len(responses)))
    return TrainingBatch(sequences, np.zeros(sequences.total, np.float32), columns)


def test_log_probs_and_a_step_are_those_of_whole_sequences(monkeypatch):
    apart = batch_of(None)
    together = batch_of([number for number, (_, lengths) in enumerate(GROUPS) for _ in lengths])
    packs = []
    made = shared_prompts.shared_prompt_params
    monkeypatch.setattr(
        "sppo_megatron.policy.step.forward_step.shared_prompt_params",
        lambda batch: packs.append(batch.tokens.shape[1]) or made(batch),
    )
    with tiny_policy(shared_run()) as policy:
        found = [policy.compute_log_probs(batch.sequences)[0] for batch in (apart, together)]
        assert packs == [30 + 4 + 0 + 11 + 0 + 3 + 3 + 3 + 25]
        np.testing.assert_allclose(found[1], found[0], atol=1e-5)
        results = []
        start = [parameter.detach().clone() for parameter in policy.chunks[0].parameters()]
        for batch, old in zip((apart, together), found, strict=True):
            frozen = dataclasses.replace(batch, old_log_probs=old - 0.1)
            for parameter, value in zip(policy.chunks[0].parameters(), start, strict=True):
                parameter.data.copy_(value)
            metrics = policy.train_step(frozen, single_units(len(batch.sequences)))
            results.append((metrics["loss"], metrics["grad_norm"]))
        assert results[1] == pytest.approx(results[0], rel=1e-5)


def test_keys_of_packed_attention_are_the_prompts_and_a_response_s_own():
    params = shared_prompts.SharedPromptParams(
        position_ids=torch.zeros(12, dtype=torch.int64),
        segments=Segments(own=[3, 2, 4, 1, 2], first=[0, 0, 0, 0, 9], prompt=[0, 3, 3, 0, 1]),
    )
    of_queries, of_keys, places = params.of_segments
    assert of_queries.tolist() == [0, 3, 5, 9, 10, 12]
    assert of_keys.tolist() == [0, 3, 8, 15, 16, 19]
    assert places.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 8, 9, 9, 10, 11]


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"moe_aux_loss_coeff": 0.1}, "model.moe_aux_loss_coeff=0.1"),
        (
            {
                "moe_router_bias_update_rate": 0.01,
                "moe_router_enable_expert_bias": True,
                "moe_router_score_function": "sigmoid",
            },
            "model.moe_expert_bias_update_rate=0.01",
        ),
    ],
)
def test_a_balance_of_experts_that_would_count_otherwise_is_refused(fields, key):
    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1, num_moe_experts=2, **fields)
    with pytest.raises(ConfigError, match=key):
        shared_prompts.check_shared_prompts(config)


def test_sinks_are_refused():
    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1, softmax_type="learnable")
    with pytest.raises(ConfigError, match="attention sinks"):
        shared_prompts.check_shared_prompts(config)
