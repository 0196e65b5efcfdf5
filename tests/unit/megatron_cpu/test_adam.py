"""torch's AdamW in Megatron-Core's distributed optimizer: what is saved and loaded goes on as if it had not been."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sppo_megatron.batch.training_batch import TrainingBatch
from sppo_megatron.config import Config, OptimizerConfig, PrecisionConfig
from sppo_megatron.policy.checkpoint.training import Checkpointer
from sppo_megatron.policy.policy import Policy
from tests.tiny_policy import frozen, random_batch, tiny_policy

from megatron.core.optimizer import USING_PYTORCH_OPTIMIZER  # isort: skip

pytestmark = pytest.mark.skipif(not USING_PYTORCH_OPTIMIZER, reason="a fused Adam is installed")
RUN = Config(precision=PrecisionConfig(dtype="fp32"), optimizer=OptimizerConfig(lr=1e-3))


def train(policy: Policy, batch: TrainingBatch, steps: int) -> list[float]:
    return [policy.train_step(batch, batch.minibatches[0])["loss"] for _ in range(steps)]


def adam_states(policy: Policy) -> list[dict[str, torch.Tensor]]:
    return [
        state for chained in policy.optimizer.chained_optimizers for state in chained.optimizer.state.values() if state
    ]


@pytest.mark.parametrize("reshardable", [True, False])
def test_a_loaded_optimizer_goes_on(tmp_path: Path, reshardable: bool) -> None:
    """Each parameter's step counts by itself: one that is shared would advance once for each of them."""
    with tiny_policy(RUN, num_hidden_layers=1) as policy:
        batch = frozen(random_batch(4), policy)
        train(policy, batch, 2)
        Checkpointer(policy, tmp_path, keep_last=1, async_save=False).save(
            2, lambda folder: None, reshardable=reshardable
        )
        expected = train(policy, batch, 3)
    with tiny_policy(RUN, num_hidden_layers=1) as policy:
        Checkpointer(policy, tmp_path, keep_last=1, async_save=False).load(tmp_path / "step_00000002")
        states = adam_states(policy)
        assert {float(state["step"]) for state in states} == {2.0}
        assert len({state["step"].data_ptr() for state in states}) == len(states) > 1
        assert train(policy, batch, 3) == expected
        assert {float(state["step"]) for state in states} == {5.0}
