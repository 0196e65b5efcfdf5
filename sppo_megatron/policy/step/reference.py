"""π_ref: the policy that a run started from, or others, whose weights take the place of π_θ's for a log-prob pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sppo_megatron.batch.sequences import Sequences
from sppo_megatron.objective.base import START
from sppo_megatron.policy.model.mapped import MappedModel
from sppo_megatron.policy.policy import Policy


class ReferencePolicy:
    """Log-probs of other policies than π_θ, weighted: `Objective.references`.

    Keeps a copy of this rank's share of each in host memory: as many bytes as its parameters take, per policy. Built
    before a checkpoint is loaded, so that a resumed run refers to the same weights.
    """

    def __init__(
        self, policy: Policy, references: Mapping[str, float], open_model: Callable[[str], MappedModel]
    ) -> None:
        """open_model: gives the model at a path. Raises ValueError if it isn't of the policy's architecture."""
        self.policy = policy
        own = [_host_copy(parameter) for parameter in self._parameters()]
        self._policies: list[tuple[float, list[Tensor]]] = []
        for path, weight in references.items():
            self._policies.append((weight, own if path == START else self._load(open_model(path), path)))
        _write(self._parameters(), own)

    def __call__(self, sequences: Sequences) -> np.ndarray:
        """Σ_j weight_j log π_j of every response token: float32 [T] nats, as `Policy.compute_log_probs`.

        π_θ has its own weights again afterwards, bit by bit. Collective.
        """
        total = np.zeros(sequences.total)
        for weight, weights in self._policies:
            with self._in_place(weights):
                total += weight * self.policy.compute_log_probs(sequences)[0].astype(np.float64)
        return total.astype(np.float32)

    def _load(self, model: MappedModel, path: str) -> list[Tensor]:
        if model.description() != self.policy.model.description():
            raise ValueError(f"{path} is a model of another architecture than the policy's: π_ref must be of the same")
        model.load_weights(self.policy.chunks, self.policy.groups)
        return [_host_copy(parameter) for parameter in self._parameters()]

    @contextlib.contextmanager
    def _in_place(self, weights: Sequence[Tensor]) -> Iterator[None]:
        """Writes into the parameters themselves: they are views of Megatron's buffers, and the optimizer's masters
        are apart."""
        self.policy.synchronize_parameters()
        parameters = self._parameters()
        own = [_host_copy(parameter) for parameter in parameters]
        _write(parameters, weights)
        try:
            yield
        finally:
            _write(parameters, own)

    def _parameters(self) -> list[Tensor]:
        return [parameter for chunk in self.policy.chunks for parameter in chunk.parameters()]


def build_reference(policy: Policy, open_model: Callable[[str], MappedModel]) -> ReferencePolicy | None:
    """None if the objective has no π_ref."""
    if not policy.objective.needs.reference:
        return None
    return ReferencePolicy(policy, policy.objective.references, open_model)


def _host_copy(parameter: Tensor) -> Tensor:
    return parameter.detach().to("cpu", copy=True)


@torch.no_grad()
def _write(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
