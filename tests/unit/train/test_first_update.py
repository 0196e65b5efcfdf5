"""What rounding shows before the first update, and what a broken layout shows: the real policy, broken on purpose."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from sppo_megatron.config import Config, OptimizerConfig, PrecisionConfig, TrainConfig
from sppo_megatron.errors import TrainingError
from sppo_megatron.policy.policy import Policy
from sppo_megatron.train.first_update import check_first_log_ratio
from tests.tiny_policy import frozen, random_batch, tiny_policy

LONGEST = 200


def module(policy: Policy, ending: str) -> torch.nn.Module:
    (found,) = (module for name, module in policy.chunks[0].named_modules() if name.endswith(ending))
    return found


def lose_a_partial_sum(policy: Policy) -> None:
    """As if one of two tensor-parallel ranks were missing from the all-reduce behind the attention."""

    def half(module, args):
        kept = args[0].clone()
        kept[..., kept.shape[-1] // 2 :] = 0
        return (kept, *args[1:])

    module(policy, "layers.1.self_attention.linear_proj").register_forward_pre_hook(half)


def give_wrong_positions(policy: Policy) -> None:
    """As if a context-parallel rank took every second position for its own ones."""
    module(policy, "rotary_pos_emb").register_forward_hook(lambda module, args, angles: angles * 2)


def drop_a_gather(policy: Policy) -> None:
    """As if sequence parallelism had gathered the first rank's share twice."""

    def twice(module, args, output):
        hidden = output[0].clone()
        half = hidden.shape[0] // 2
        hidden[half : 2 * half] = hidden[:half]
        return (hidden, *output[1:])

    module(policy, "layers.1.mlp").register_forward_hook(twice)


def first_step(dtype: str, damage: Callable[[Policy], None] | None) -> dict[str, float]:
    """π_t from padded micro-batches, the step on packed ones: rounding differs as much as it can on one rank."""
    run = Config(
        precision=PrecisionConfig(dtype=dtype), optimizer=OptimizerConfig(use_distributed_optimizer=False, lr=0.0)
    )
    with tiny_policy(replace(run, train=TrainConfig(micro_batch_size=4))) as policy:
        batch = frozen(random_batch(8, LONGEST), policy)
    with tiny_policy(replace(run, train=TrainConfig(max_tokens_per_micro_batch=512))) as policy:
        if damage is not None:
            damage(policy)
        return policy.train_step(batch, batch.minibatches[0])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_rounding_passes(dtype: str) -> None:
    metrics = first_step(dtype, None)
    assert metrics["log_ratio_abs_max"] > 0
    check_first_log_ratio(metrics, LONGEST, PrecisionConfig(dtype=dtype), 0)


@pytest.mark.parametrize("damage", [lose_a_partial_sum, give_wrong_positions, drop_a_gather])
def test_a_broken_layout_is_found_in_bf16(damage: Callable[[Policy], None]) -> None:
    with pytest.raises(TrainingError, match=r"root mean square .* over tokens is"):
        check_first_log_ratio(first_step("bf16", damage), LONGEST, PrecisionConfig(dtype="bf16"), 0)


@pytest.mark.parametrize(("nats", "passes"), [(10.0, True), (20.0, False)])
def test_one_broken_response_among_thousands(nats: float, passes: bool) -> None:
    """4096 tokens in bf16: 82 nats went unnoticed when the bound grew with the length and not with its root."""
    metrics = {"kl_k3": 1e-6, "log_ratio_abs_max": nats}
    if passes:
        check_first_log_ratio(metrics, 4096, PrecisionConfig(dtype="bf16"), 0)
        return
    with pytest.raises(TrainingError, match="of a response"):
        check_first_log_ratio(metrics, 4096, PrecisionConfig(dtype="bf16"), 3)


def test_what_is_not_a_number_does_not_pass() -> None:
    with pytest.raises(TrainingError):
        check_first_log_ratio({"kl_k3": 0.0, "log_ratio_abs_max": math.nan}, 1, PrecisionConfig(dtype="fp32"), 0)
