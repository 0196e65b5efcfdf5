"""π_ref: the policy that a run started from, whose weights take the place of π_θ's for a log-prob pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sppo_megatron.batch.sequences import Sequences
from sppo_megatron.policy.policy import Policy


class ReferencePolicy:
    """Keeps a copy of this rank's weights as they are now, in host memory: as many bytes as its parameters take.

    Built before a checkpoint is loaded, so that a resumed run refers to the same weights.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._weights = [_host_copy(parameter) for parameter in self._parameters()]

    def __call__(self, sequences: Sequences) -> np.ndarray:
        """log π_ref of every response token: float32 [T] nats, as `Policy.compute_log_probs`.

        π_θ has its own weights again afterwards, bit by bit. Collective.
        """
        with self._in_place():
            return self.policy.compute_log_probs(sequences)[0]

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        """Writes into the parameters themselves: they are views of Megatron's buffers, and the optimizer's masters
        are apart."""
        self.policy.synchronize_parameters()
        parameters = self._parameters()
        own = [_host_copy(parameter) for parameter in parameters]
        _write(parameters, self._weights)
        try:
            yield
        finally:
            _write(parameters, own)

    def _parameters(self) -> list[Tensor]:
        return [parameter for chunk in self.policy.chunks for parameter in chunk.parameters()]


def build_reference(policy: Policy) -> ReferencePolicy | None:
    """None if the objective has no π_ref."""
    return ReferencePolicy(policy) if policy.objective.needs.reference else None


def _host_copy(parameter: Tensor) -> Tensor:
    return parameter.detach().to("cpu", copy=True)


@torch.no_grad()
def _write(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
