"""A checkpoint of a policy on a GPU: loaded into a new one, training goes on as if it had not been."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sppo_megatron.batch.training_batch import TrainingBatch
from sppo_megatron.config import Config, OptimizerConfig, PrecisionConfig
from sppo_megatron.policy.checkpoint.training import Checkpointer
from sppo_megatron.policy.policy import Policy
from tests.tiny_policy import frozen, random_batch, tiny_policy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def train(policy: Policy, batch: TrainingBatch, steps: int) -> list[float]:
    return [policy.train_step(batch, batch.minibatches[0])["loss"] for _ in range(steps)]


@pytest.mark.parametrize("distributed", [True, False], ids=["distributed", "plain"])
@pytest.mark.parametrize("async_save", [False, True], ids=["waits", "async"])
def test_training_goes_on(tmp_path: Path, distributed: bool, async_save: bool) -> None:
    run = Config(
        precision=PrecisionConfig(dtype="bf16"),
        optimizer=OptimizerConfig(lr=1e-4, use_distributed_optimizer=distributed),
    )
    with tiny_policy(run) as policy:
        batch = frozen(random_batch(4), policy)
        train(policy, batch, 2)
        checkpointer = Checkpointer(policy, tmp_path, keep_last=1, async_save=async_save)
        checkpointer.save(2, lambda folder: None, reshardable=not distributed)
        expected = train(policy, batch, 3)
        checkpointer.finalize()
    with tiny_policy(run) as policy:
        Checkpointer(policy, tmp_path, keep_last=1, async_save=False).load(tmp_path / "step_00000002")
        assert train(policy, batch, 3) == pytest.approx(expected, rel=1e-3)
