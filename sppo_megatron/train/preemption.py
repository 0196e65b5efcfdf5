"""Told to stop: a cluster takes its nodes back with SIGTERM or SIGUSR1 and some seconds to save."""

from __future__ import annotations

import logging
import signal
from types import FrameType

import torch
import torch.distributed as dist

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(Exception):
    """The run stopped as it was told to, after saving. step: optimizer steps done."""

    def __init__(self, step: int):
        super().__init__(f"stopped after optimizer step {step}; continue with checkpoint.load=latest")
        self.step = step


class PreemptionGuard:
    """Notes the signals of this process from construction to `close`; ranks agree on them in `requested`."""

    def __init__(self, device: torch.device):
        self._device = device
        self._received = False
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = True

    def requested(self) -> bool:
        """Whether any rank was told to stop. Collective: one all-reduce of one number."""
        flag = torch.tensor(float(self._received), device=self._device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        if flag > 0:
            logger.warning("told to stop: saving a checkpoint")
        return bool(flag > 0)

    def close(self) -> None:
        """Gives the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
