"""Training steps on one GPU, in each number format that it has."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from sppo_megatron.batch.training_batch import TrainingBatch
from sppo_megatron.config import Config
from sppo_megatron.config.compose import compose_config
from sppo_megatron.config.precision import find_fp8_problem
from sppo_megatron.parallel.fused_kernels import cuda_version, device_capability, is_installed
from sppo_megatron.policy.policy import Policy
from sppo_megatron.policy.step.fp8_probe import Fp8Probe
from sppo_megatron.rollout.registry import check_run
from tests.tiny_policy import random_batch, tiny_policy

STOOD_IN = "SPPO_KERNELS_STOOD_IN" in os.environ  # tests/distributed/transformer_engine runs some of this on CPU
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() and not STOOD_IN, reason="needs a CUDA device"),
]
FP8 = ["fp8_delayed", "fp8_tensorwise", "fp8_blockwise", "mxfp8"]
LONGEST = 40  # tokens of a response
# nats per token that |s| may show before the first update: rounding; delayed scales move between the two passes
ROUNDING = {"fp32": 1e-3, "fp8_delayed": 0.1}


def make_config(preset: str, *overrides: str) -> Config:
    """Skips the test, with the reason, if this machine lacks the format."""
    config, _ = compose_config(
        [
            *("model.hf_path=none", "rollout=replay", "rollout.path=.", f"precision={preset}"),
            *("precision.initial_loss_scale=64", "optimizer.lr=2e-5", *overrides),
        ]
    )
    check_run(config, world_size=1)
    problem = find_fp8_problem(
        config.precision,
        transformer_engine=is_installed("transformer_engine"),
        capability=device_capability(),
        cuda=cuda_version(),
    )
    if problem is not None:
        pytest.skip(problem)
    return config


def freeze(policy: Policy) -> TrainingBatch:
    """A batch with log π_t of the policy as it is."""
    batch = random_batch(8, longest=LONGEST)
    log_probs, entropy = policy.compute_log_probs(batch.sequences)
    assert np.isfinite(entropy) and np.isfinite(log_probs).all()
    return replace(batch, old_log_probs=log_probs)


@pytest.mark.parametrize("layout", ["train.micro_batch_size=4", "train.max_tokens_per_micro_batch=256"])
@pytest.mark.parametrize("preset", ["fp32", "bf16", "fp16", *FP8])
def test_the_policy_learns(preset, layout):
    with tiny_policy(make_config(preset, layout)) as policy:
        before = {name: tensor.clone() for name, tensor in policy.export_weights()}
        batch = freeze(policy)
        steps = [policy.train_step(batch, batch.minibatches[0]) for _ in range(10)]
        # π_θ is π_t in the first step: s is 0 up to rounding, and the loss is the mean of δ²
        assert steps[0]["log_ratio_abs_max"] <= ROUNDING.get(preset, 2e-2) * LONGEST
        assert all(np.isfinite(step["loss"]) and np.isfinite(step["grad_norm"]) for step in steps)
        assert min(step["loss"] for step in steps) < 0.7 * np.mean(batch.columns["target"] ** 2)
        after = dict(policy.export_weights())
        assert all(torch.isfinite(tensor).all() for tensor in after.values())
        assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("preset", FP8)
def test_fp8_differs_from_bf16_and_not_by_much(preset, record_property):
    config = make_config(preset)
    with tiny_policy(config) as policy:
        batch = freeze(policy)
        figures = Fp8Probe(policy, config.precision)(batch.sequences, batch.old_log_probs)
        for name, value in figures.items():
            record_property(name, value)
        assert 0 < figures["fp8_log_prob_diff_mean"] < 0.2
        assert abs(figures["fp8_log_prob_diff"]) <= figures["fp8_log_prob_diff_mean"]
        # the switch is back: the same pass gives the same numbers as before
        again, _ = policy.compute_log_probs(batch.sequences)
        assert np.allclose(batch.old_log_probs, again, atol=1e-6)


@pytest.mark.parametrize("preset", ["fp8_delayed", "fp8_tensorwise", "fp8_blockwise"])
def test_weights_in_fp8(preset):
    """The optimizer starts from the unrounded weights, and what is exported are plain numbers near them."""
    with tiny_policy(make_config(preset, "precision.fp8_param=true")) as policy:
        rounded = dict(policy.export_weights())
        assert {type(tensor) for tensor in rounded.values()} == {torch.Tensor}
        batch = freeze(policy)
        steps = [policy.train_step(batch, batch.minibatches[0]) for _ in range(10)]
        assert min(step["loss"] for step in steps) < 0.7 * np.mean(batch.columns["target"] ** 2)
    with tiny_policy(make_config("bf16")) as policy:
        for name, tensor in policy.export_weights():
            assert (rounded[name] - tensor).abs().max() <= 0.07 * tensor.abs().max(), name
