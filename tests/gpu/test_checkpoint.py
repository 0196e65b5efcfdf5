"""A checkpoint of a policy on a GPU: loaded into a new one, training goes on as if it had not been."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sppo_megatron.batch.micro_batches import Sample
from sppo_megatron.config import Config, OptimizerConfig, PrecisionConfig
from sppo_megatron.policy.checkpoint.training import Checkpointer
from sppo_megatron.policy.policy import Policy
from tests.tiny_policy import random_samples, tiny_policy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def train(policy: Policy, samples: list[Sample], steps: int) -> list[float]:
    return [policy.train_step([(sample,) for sample in samples])["loss"] for _ in range(steps)]


@pytest.mark.parametrize("distributed", [True, False], ids=["distributed", "plain"])
@pytest.mark.parametrize("async_save", [False, True], ids=["waits", "async"])
def test_training_goes_on(tmp_path: Path, distributed: bool, async_save: bool) -> None:
    run = Config(
        precision=PrecisionConfig(dtype="bf16"),
        optimizer=OptimizerConfig(lr=1e-4, use_distributed_optimizer=distributed),
    )
    samples = random_samples(4)
    with tiny_policy(run) as policy:
        for sample, log_probs in zip(samples, policy.compute_log_probs(samples)[0], strict=True):
            sample.old_log_probs = log_probs
        train(policy, samples, 2)
        checkpointer = Checkpointer(policy, tmp_path, keep_last=1, async_save=async_save)
        checkpointer.save(2, lambda folder: None)
        expected = train(policy, samples, 3)
        checkpointer.finalize()
    with tiny_policy(run) as policy:
        Checkpointer(policy, tmp_path, keep_last=1, async_save=False).load(tmp_path / "step_00000002")
        assert train(policy, samples, 3) == pytest.approx(expected, rel=1e-3)
