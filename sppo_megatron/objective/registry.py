"""Every objective by the name that the configuration gives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sppo_megatron.objective.base import Objective
from sppo_megatron.objective.pairs import Inpo, Pairs, Spin
from sppo_megatron.objective.sppo import Sppo

# objective.pairwise chooses here; its other kinds are `Pairs`
_PAIRWISE: dict[str, type[Objective]] = {"spin": Spin, "inpo": Inpo}


def objective_class(keys: Mapping[str, Any]) -> type[Objective]:
    """The class that the `objective` group of the configuration names."""
    if keys.get("pairwise") is not None:
        return _PAIRWISE.get(keys["pairwise"], Pairs)
    return Sppo


def build_objective(keys: Mapping[str, Any], max_response_length: int | None = None) -> Objective:
    """keys: every key of the `objective` group. max_response_length: tokens. Raises ValueError on impossible values."""
    return objective_class(keys).from_keys({**keys, "max_length": max_response_length})
