"""Objectives by name, and one of the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from sppo_megatron.objective.base import Objective, Units
from sppo_megatron.objective.function import FunctionObjective
from sppo_megatron.objective.pairwise import PAIRWISE_KINDS
from sppo_megatron.objective.reduction import LossSums
from sppo_megatron.objective.registry import OBJECTIVES, build_objective, objective_class, readers_of
from sppo_megatron.objective.sppo import Sppo

HERE = __name__


def absolute(log_ratio, batch):
    """|s − δ| of each response."""
    return (log_ratio - batch.columns["target"]).abs()


@dataclass(frozen=True, kw_only=True)
class Huber(Objective):
    width: float = 1.0

    def loss(self, log_ratio, batch):
        losses = torch.nn.functional.huber_loss(log_ratio, batch.columns["target"], reduction="none", delta=self.width)
        return LossSums(losses.sum(), torch.ones(()), {})


NO_OBJECTIVE = 3
READY = Sppo(eta=7.0)


def test_every_name_and_kind_has_its_units():
    assert {kind: objective_class({"pairwise": kind}).units for kind in PAIRWISE_KINDS} == {
        kind: Units.HUMAN_VS_SAMPLE if kind == "spin" else Units.BEST_WORST for kind in PAIRWISE_KINDS
    }
    assert {name: objective_class({"name": name}) for name in OBJECTIVES} == OBJECTIVES


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "ppo"}, "objective.name='ppo' is not known: choose one of sppo, grpo"),
        ({"name": "grpo", "pairwise": "dpo"}, "objective.pairwise=dpo is of objective.name=sppo"),
        ({"name": "function"}, 'is not of the form "module:name"'),
        ({"name": "function", "function": "nowhere_at_all:loss"}, "ModuleNotFoundError"),
        ({"name": "function", "function": f"{HERE}:missing"}, "AttributeError"),
        ({"name": "function", "function": f"{HERE}:NO_OBJECTIVE"}, "is a int: it must be a function"),
        ({"name": "function", "function": f"{HERE}:SimpleNamespace"}, "is a type: it must be a function"),
    ],
)
def test_what_cannot_be(keys, message):
    with pytest.raises(ValueError, match=message):
        build_objective(keys)


def test_a_loss_function_of_ones_own():
    objective = build_objective({"name": "function", "function": f"{HERE}:absolute", "eta": 2.0, "baseline": "mean"})
    assert isinstance(objective, FunctionObjective) and objective.eta == 2.0
    columns = objective.columns(torch.tensor([1.0, 0.0]).double(), torch.zeros(2, dtype=torch.int64))
    assert columns["target"].tolist() == [1.0, -1.0]
    batch = SimpleNamespace(
        columns={"target": torch.tensor([1.0, -1.0, float("nan")]), "weight": torch.tensor([1.0, 0.5, 9.0])},
        lengths=torch.tensor([2.0, 3.0, 0.0]),
    )
    sums = objective.loss(torch.tensor([0.0, 3.0, 0.0]), batch)
    assert (sums.loss_sum.item(), sums.weight_sum.item()) == (3.0, 2.0)


def test_a_function_that_gives_no_loss_for_each_response():
    objective = FunctionObjective(function=lambda log_ratio, batch: log_ratio.sum())
    with pytest.raises(ValueError, match=r"the loss of objective.function: shape \[\] differs"):
        objective.loss(torch.zeros(3), SimpleNamespace(lengths=torch.ones(3), columns={"weight": torch.ones(3)}))


def test_an_objective_of_ones_own_gets_its_options():
    keys = {"name": "function", "function": f"{HERE}:Huber", "options": {"width": 0.5}, "eta": None, "tau": 0.25}
    assert build_objective(keys) == Huber(width=0.5, eta=4.0)
    assert build_objective({"name": "function", "function": f"{HERE}:READY"}) is READY


def test_who_reads_a_key():
    assert readers_of("kl_coef") == ["objective.name=grpo"]
    assert readers_of("ref_coef") == ["objective.name=mnpo", "objective.pairwise=inpo"]
