"""Told to stop: a cluster takes its nodes back with SIGTERM or SIGUSR1 and some seconds to save."""

from __future__ import annotations

import logging

import torch

from sppo_megatron.cluster.interrupt import StopSignals, any_was_told

logger = logging.getLogger(__name__)


class Preempted(Exception):
    """The run stopped as it was told to, after saving. step: optimizer steps done."""

    def __init__(self, step: int):
        super().__init__(f"stopped after optimizer step {step}; continue with checkpoint.load=latest")
        self.step = step


class PreemptionGuard:
    """Notes the signals of this process from construction to `close`; ranks agree on them in `requested`."""

    def __init__(self, device: torch.device):
        self._device = device
        self._signals = StopSignals()

    def requested(self) -> bool:
        """Whether any rank was told to stop. Collective: one all-reduce of one number."""
        told = any_was_told(self._device, None)
        if told:
            logger.warning("told to stop: saving a checkpoint")
        return told

    def close(self) -> None:
        """Gives the signals back to whoever had them."""
        self._signals.close()
