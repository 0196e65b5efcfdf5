"""A user's own objective: a loss function of sequence log-ratios, or a whole Objective, named by "module:name"."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sppo_megatron.objective.base import LossBatch, Objective
from sppo_megatron.objective.checks import check_same_shape
from sppo_megatron.objective.reduction import LossSums, weighted_sum

OwnLoss = Callable[[Tensor, LossBatch], Tensor]


@dataclass(frozen=True, kw_only=True)
class FunctionObjective(Objective):
    """The mean of function(s [S], micro-batch), a loss [S] for each response; those without a token don't count."""

    function: OwnLoss

    @classmethod
    def keys_read(cls) -> set[str]:
        return super().keys_read() | {"options"}

    @classmethod
    def check(cls, config: Any, generates: bool) -> Iterator[str]:
        try:
            found = type(load_objective(vars(config.objective)))
        except (ValueError, TypeError) as error:
            yield str(error)
        else:
            if found is not cls:
                yield from found.check(config, generates)

    def loss(self, log_ratio: Tensor, batch: LossBatch) -> LossSums:
        valid = batch.lengths > 0
        losses = self.function(log_ratio, batch)
        check_same_shape("the loss of objective.function", losses, "the log-ratios", log_ratio)
        loss_sum = weighted_sum(torch.where(valid, losses, 0), valid, batch.columns["weight"], validate=False)
        return LossSums(loss_sum, valid.sum().to(loss_sum.dtype), {})


def load_objective(keys: Mapping[str, Any]) -> Objective:
    """keys["function"] names a loss function, a subclass of Objective, which gets keys["options"] too, or an Objective.

    The current directory counts, as under `python -m`. Raises ValueError saying what to change.
    """
    path = keys.get("function") or ""
    found = _find(path)
    if isinstance(found, Objective):
        return found
    if isinstance(found, type) and issubclass(found, Objective):
        return found.from_keys({**keys, **(keys.get("options") or {})})
    if callable(found) and not isinstance(found, type):
        return FunctionObjective.from_keys({**keys, "function": found})
    raise ValueError(
        f"objective.function={path!r} is a {type(found).__name__}: it must be a function of (log_ratio, batch), "
        "or an Objective or a subclass of it (sppo_megatron.objective.base)"
    )


def _find(path: str) -> Any:
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise ValueError(f'objective.function={path!r} is not of the form "module:name", such as "my_objective:loss"')
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module_name), name)
    except Exception as error:
        raise ValueError(
            f"objective.function={path!r}: {type(error).__name__}: {error}; put the module on PYTHONPATH or in the "
            f"current directory ({os.getcwd()})"
        ) from error
