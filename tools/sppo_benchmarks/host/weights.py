"""Rows of the weights: a million parameters in the place of a million tokens."""

from __future__ import annotations

from pathlib import Path

import torch

from sppo_benchmarks.host.row import Row, Work
from sppo_benchmarks.host.workload import Workload
from sppo_megatron.engines.fingerprint import WeightCounter


def fingerprint(work: Workload, folder: Path) -> Work:
    """Of as many bf16 parameters as the workload has tokens, in tensors of at most 4M."""
    tensors = torch.randn(work.tokens, generator=torch.Generator().manual_seed(0)).bfloat16().split(1 << 22)

    def call() -> None:
        counter = WeightCounter()
        for number, tensor in enumerate(tensors):
            counter.add(str(number), tensor)
        counter.fingerprint()

    return call


ROWS = (Row("weights fingerprinted (M parameters)", fingerprint, 0.00025),)
