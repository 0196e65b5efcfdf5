"""How the multi-process cases compare: tolerances, and what must be the same on every rank."""

from __future__ import annotations

import torch
import torch.distributed as dist

GRAD_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
VALUE_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5}


def close(name: str, actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Error relative to the largest expected entry, or to 1 if that is larger."""
    assert actual.shape == expected.shape, f"{name}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    if expected.numel() == 0:
        return
    error = float((actual.double() - expected.double()).abs().max() / expected.abs().max().clamp_min(1.0))
    assert error <= tolerance, f"{name}: error {error:.3e} > {tolerance:.0e}"


def same_on_all_ranks(name: str, tensor: torch.Tensor, group: dist.ProcessGroup) -> None:
    copies = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(copies, tensor.detach().contiguous(), group=group)
    assert all(torch.equal(copy, copies[0]) for copy in copies), f"{name}: differs between ranks"
