"""Reductions without a group: what is packed and what is raised. Over ranks: tests/distributed/parallel."""

from __future__ import annotations

import math

import pytest
import torch

from sppo_megatron.parallel import reduce_max, reduce_sums


def test_values_come_back_under_their_keys():
    values = {"b": torch.tensor(2.5), "a": torch.tensor([3]), "c": torch.tensor(2.0**53, dtype=torch.float64)}
    assert reduce_sums(values) == {"a": 3.0, "b": 2.5, "c": 2.0**53}
    assert reduce_max(values) == {"a": 3.0, "b": 2.5, "c": 2.0**53}


def test_nothing_to_reduce():
    assert reduce_sums({}) == {}
    assert reduce_max({}) == {}


def test_non_finite_values_are_kept():
    assert math.isnan(reduce_sums({"a": torch.tensor(math.nan)})["a"])
    assert reduce_max({"a": torch.tensor(math.nan), "b": torch.tensor(-math.inf)}) == {"a": math.inf, "b": -math.inf}
    assert reduce_max({"a": torch.tensor(math.inf)}) == {"a": math.inf}


def test_values_with_a_graph_are_read_only():
    assert reduce_sums({"loss": torch.tensor(1.5, requires_grad=True) * 2}) == {"loss": 3.0}


def test_a_vector_raises():
    with pytest.raises(ValueError, match=r"'losses' has shape \[2\]"):
        reduce_sums({"losses": torch.zeros(2)})
