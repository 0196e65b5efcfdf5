"""A run that continues with another configuration of its optimizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from sppo_megatron.config import Config, OptimizerConfig, PrecisionConfig
from sppo_megatron.policy.checkpoint.training import Checkpointer
from tests.tiny_policy import frozen, random_batch, tiny_policy


@pytest.mark.parametrize("distributed", [False, True])
def test_the_present_settings_of_the_optimizer_hold(tmp_path: Path, distributed: bool) -> None:
    """Saved after two steps of one schedule, continued with another: each of its figures is the new one."""
    before = OptimizerConfig(use_distributed_optimizer=distributed, lr=1e-3)
    now = OptimizerConfig(
        use_distributed_optimizer=distributed,
        lr=5e-4,
        min_lr=1e-4,
        lr_decay_style="linear",
        lr_decay_steps=10,
        weight_decay=0.2,
        adam_beta1=0.8,
        adam_beta2=0.7,
        adam_eps=1e-5,
    )
    fp32 = PrecisionConfig(dtype="fp32")
    with tiny_policy(Config(precision=fp32, optimizer=before), num_hidden_layers=1) as policy:
        batch = frozen(random_batch(4), policy)
        for _ in range(2):
            policy.train_step(batch, batch.minibatches[0])
        Checkpointer(policy, tmp_path, keep_last=1, async_save=False).save(2, lambda folder: None)
    with tiny_policy(Config(precision=fp32, optimizer=now), num_hidden_layers=1) as policy:
        Checkpointer(policy, tmp_path, keep_last=1, async_save=False).load(tmp_path / "step_00000002")
        for group in policy.optimizer.param_groups:
            assert (group["betas"], group["eps"]) == ((0.8, 0.7), 1e-5)
            assert group["weight_decay"] in (0.0, 0.2)
        metrics = [policy.train_step(batch, batch.minibatches[0]) for _ in range(2)]
    expected = [1e-4 + (5e-4 - 1e-4) * (1 - step / 10) for step in (2, 3)]
    assert [step["lr"] for step in metrics] == pytest.approx(expected)
