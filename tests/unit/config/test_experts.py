"""What is said if a mixture of experts can't be laid out as configured."""

from __future__ import annotations

import pytest

from sppo_megatron.config import ParallelismConfig
from sppo_megatron.config.parallelism import check_layout, check_processes
from sppo_megatron.errors import ConfigError

SIZES = {"num_layers": 4, "num_attention_heads": 8, "num_query_groups": 4, "ffn_hidden_size": 64}
EXPERTS = {"num_experts": 6, "expert_ffn_hidden_size": 20}


def parallelism(tp=1, pp=1, ep=1, etp=None, sp=None) -> ParallelismConfig:
    return ParallelismConfig(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        expert_model_parallel_size=ep,
        expert_tensor_parallel_size=etp,
        sequence_parallel=tp > 1 if sp is None else sp,
    )


@pytest.mark.parametrize("sizes", [{}, {"ep": 2}, {"ep": 3, "etp": 5}, {"tp": 2}, {"tp": 4, "etp": 1, "ep": 6}])
def test_what_fits(sizes):
    check_layout(parallelism(**sizes), **SIZES, **EXPERTS)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"ep": 4}, "expert_model_parallel_size=4 does not divide the model's 6 experts: choose one of 1, 2, 3, 6"),
        ({"tp": 8}, "expert_tensor_parallel_size=8 does not divide the experts' 20 MLP columns"),
        ({"etp": 3}, "expert_tensor_parallel_size=3 does not divide"),
        ({"tp": 2, "sp": False}, "needs parallelism.sequence_parallel=true"),
    ],
)
def test_what_does_not(sizes, message):
    with pytest.raises(ConfigError, match=message):
        check_layout(parallelism(**sizes), **SIZES, **EXPERTS)


def test_experts_with_biases_are_not_cut():
    check_layout(parallelism(tp=2, etp=1), **SIZES, **EXPERTS, biased_experts=True)
    with pytest.raises(ConfigError, match=r"have biases.*set parallelism\.expert_tensor_parallel_size=1"):
        check_layout(parallelism(tp=2), **SIZES, **EXPERTS, biased_experts=True)


@pytest.mark.parametrize("sizes", [{"ep": 2}, {"etp": 1}])
def test_a_dense_model_has_no_experts_to_spread(sizes):
    with pytest.raises(ConfigError, match="this one is dense"):
        check_layout(parallelism(**sizes), **SIZES)
    check_layout(parallelism(tp=2, sp=False), **SIZES)


@pytest.mark.parametrize(
    ("sizes", "world_size"),
    [
        ({"ep": 4}, 4),
        ({"ep": 4}, 8),
        ({"tp": 2, "ep": 2}, 4),
        ({"tp": 2, "ep": 2, "etp": 1}, 2),
        ({"pp": 2, "ep": 2}, 4),
    ],
)
def test_processes_that_suffice(sizes, world_size):
    check_processes(parallelism(**sizes), world_size)


@pytest.mark.parametrize(
    ("sizes", "world_size", "message"),
    [
        (
            {"ep": 4},
            6,
            "6 processes can't be split into expert replicas of 4 = expert tensor 1 × expert 4 × pipeline 1",
        ),
        ({"tp": 2, "ep": 2}, 2, "expert replicas of 4"),
        ({"pp": 2, "ep": 4}, 4, "expert replicas of 8"),
        ({"tp": 4, "ep": 6, "etp": 1}, 12, "= 6 must divide parallelism.tensor_model_parallel_size=4 or be a multiple"),
    ],
)
def test_processes_that_do_not(sizes, world_size, message):
    with pytest.raises(ConfigError, match=message):
        check_processes(parallelism(**sizes), world_size)
