"""Which groups are worth training on, by the value of rollout.filter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sppo_megatron.batch.targets import build_targets
from sppo_megatron.objective.base import Objective
from sppo_megatron.rewards.function import find_function
from sppo_megatron.rollout.user_code import said_by_first_rank
from sppo_megatron.types import Group

# Of scored groups, which are kept: one bool for each, the same on every rank. Collective.
GroupFilter = Callable[[Sequence[Group]], list[bool]]


def has_spread(groups: Sequence[Group], objective: Objective, min_spread: float) -> list[bool]:
    """Whether the values of a group's responses differ by more than min_spread: what baselines are taken from, rewards
    or win rates with the length reward. Without a spread a group's own baseline leaves nothing to learn."""
    found = []
    for group in groups:
        values = build_targets([group], objective).values
        found.append(float(values.max() - values.min()) > min_spread)
    return found


def build_filter(name: str | None, objective: Objective, min_spread: float) -> GroupFilter | None:
    """None keeps every group. name: degenerate, or "module:name" of a function that is given a `Group`, scored, and
    says whether it is kept. min_spread: of degenerate. Raises ConfigError if there is no such function."""
    if name is None:
        return None
    if name == "degenerate":
        return lambda groups: has_spread(groups, objective, min_spread)
    keeps = find_function(name, "rollout.filter")
    return lambda groups: said_by_first_rank(f"rollout.filter={name}", lambda: [bool(keeps(each)) for each in groups])
