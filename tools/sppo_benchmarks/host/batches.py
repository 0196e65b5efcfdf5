"""Rows of an iteration's batch: log-probs collected, the gate, importance weights, micro-batches."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from sppo_benchmarks.host.row import Row, Work
from sppo_benchmarks.host.workload import Workload
from sppo_megatron.batch.build import rollouts_of
from sppo_megatron.batch.columns import importance_column, log_ratio_columns
from sppo_megatron.batch.gate import check_mismatch
from sppo_megatron.batch.micro_batches import MicroBatchLayout, plan_micro_batches
from sppo_megatron.batch.sequences import sequences_of
from sppo_megatron.batch.targets import build_targets
from sppo_megatron.batch.training_batch import single_units
from sppo_megatron.config import MismatchConfig
from sppo_megatron.objective.registry import build_objective
from sppo_megatron.policy import policy as policy_module

BUDGET = 16384  # tokens of a packed micro-batch


def collected_log_probs(work: Workload, folder: Path) -> Work:
    """`Policy.compute_log_probs` on one rank without its model: all that is no arithmetic of the network."""
    one: Any = SimpleNamespace(size=lambda: 1, rank=lambda: 0)
    policy: Any = policy_module.Policy.__new__(policy_module.Policy)
    policy.groups = SimpleNamespace(tp=one, pp=one, dp=one, cp=one, dp_cp=one)
    policy.device = torch.device("cpu")
    policy.model = SimpleNamespace(longest_sequence=None)
    policy.chunks = [nn.Identity()]
    policy._lacks_fp8_scales = False
    policy._log_prob_head = None
    policy._layout = MicroBatchLayout(max_tokens=BUDGET)

    def schedule(*, data_iterator: Any, num_microbatches: int, **_: Any) -> list[Any]:
        found = []
        for _number in range(num_microbatches):
            batch = next(data_iterator)
            found.append(policy_module.collect_log_probs(batch, torch.zeros(2, len(batch.rows)))[1])
            del batch
        return found

    def call() -> None:
        with patch.object(policy_module, "get_forward_backward_func", lambda: schedule):
            policy.compute_log_probs(work.sequences)

    return call


def flattened(work: Workload, folder: Path) -> Work:
    return lambda: rollouts_of(work.groups, sequences_of(work.groups))


def gate(work: Workload, folder: Path) -> Work:
    config = MismatchConfig()
    return partial(check_mismatch, work.sequences, work.old_log_probs, work.rollouts, config, iteration=0, version=0)


def importance(level: str, work: Workload, folder: Path) -> Work:
    objective = build_objective({"importance_weight": level}, 8192)
    targets = build_targets(work.groups, objective)
    nobody = np.zeros(len(work.sequences), np.bool_)

    def call() -> None:
        log_ratio_columns(work.sequences, work.old_log_probs, work.rollouts, None)
        importance_column(targets, work.sequences, work.old_log_probs, work.rollouts, objective, nobody)

    return call


def packing(dp_size: int, work: Workload, folder: Path) -> Work:
    layout = MicroBatchLayout(max_tokens=BUDGET)
    units, num_tokens = single_units(len(work.sequences)), work.sequences.num_tokens
    return lambda: plan_micro_batches(units, num_tokens, layout, dp_size)


ROWS = (
    Row("log-probs collected", collected_log_probs, 0.02),
    Row("groups to flat arrays", flattened),
    Row("mismatch gate", gate, 0.01),
    Row("log-ratios, sequence weights", partial(importance, "sequence"), 0.01),
    Row("log-ratios, token weights", partial(importance, "token"), 0.01),
    Row("packing, 1 rank", partial(packing, 1), 0.01),
    Row("packing, 64 ranks", partial(packing, 64), 0.01),
)
