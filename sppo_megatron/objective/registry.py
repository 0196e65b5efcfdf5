"""Every objective by the name that the configuration gives it: one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sppo_megatron.objective.base import Objective
from sppo_megatron.objective.function import FunctionObjective, load_objective
from sppo_megatron.objective.grpo import Grpo
from sppo_megatron.objective.gvpo import Gvpo
from sppo_megatron.objective.kto import Kto
from sppo_megatron.objective.mnpo import Mnpo
from sppo_megatron.objective.pairs import Inpo, Pairs, Spin
from sppo_megatron.objective.pairwise import PAIRWISE_KINDS
from sppo_megatron.objective.sft import Sft
from sppo_megatron.objective.sppo import Sppo

# objective.name
OBJECTIVES: dict[str, type[Objective]] = {
    "sppo": Sppo,
    "grpo": Grpo,
    "gvpo": Gvpo,
    "mnpo": Mnpo,
    "sft": Sft,
    "kto": Kto,
    "function": FunctionObjective,
}
# objective.pairwise chooses among pairs, whose name is sppo's; the other kinds are `Pairs`
_PAIRWISE: dict[str, type[Objective]] = {"spin": Spin, "inpo": Inpo}
# What is not built from its keys by the class itself
_BUILDERS: dict[type[Objective], Callable[[Mapping[str, Any]], Objective]] = {FunctionObjective: load_objective}


def objective_class(keys: Mapping[str, Any]) -> type[Objective]:
    """The class that the `objective` group of the configuration names. Raises ValueError for an unknown name."""
    name, pairwise = keys.get("name", "sppo"), keys.get("pairwise")
    if name not in OBJECTIVES:
        raise ValueError(f"objective.name={name!r} is not known: choose one of {', '.join(OBJECTIVES)}")
    if pairwise is not None and OBJECTIVES[name] is not Sppo:
        raise ValueError(f"objective.pairwise={pairwise} is of objective.name=sppo, not {name}: set it to null")
    return OBJECTIVES[name] if pairwise is None else _PAIRWISE.get(pairwise, Pairs)


def build_objective(keys: Mapping[str, Any], max_response_length: int | None = None) -> Objective:
    """keys: every key of the `objective` group. max_response_length: tokens. Raises ValueError on impossible values."""
    cls = objective_class(keys)
    return _BUILDERS.get(cls, cls.from_keys)({**keys, "max_length": max_response_length})


def readers_of(key: str) -> list[str]:
    """Which values of objective.name or objective.pairwise read a key of the `objective` group."""
    named = {f"objective.name={name}": cls for name, cls in OBJECTIVES.items()}
    named |= {f"objective.pairwise={kind}": _PAIRWISE.get(kind, Pairs) for kind in PAIRWISE_KINDS}
    return [name for name, cls in named.items() if key in cls.keys_read()]
