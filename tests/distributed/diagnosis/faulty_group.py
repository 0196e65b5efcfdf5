"""A process group over gloo whose rank `FAULTY` contributes wrong values: what a broken link or memory does."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

FAULTY = 1
NAME = "faulty"


class FaultyGroup(dist.ProcessGroup):
    """Hands every call on to gloo. Nonzero numbers that the faulty rank contributes are off by one."""

    def __init__(self, gloo: Any):
        super().__init__(gloo.rank(), gloo.size())
        self.gloo = gloo

    def getBackendName(self) -> str:
        return NAME

    def _spoil(self, tensor: Any) -> Any:
        return tensor.add_(tensor.ne(0)) if self.rank() == FAULTY else tensor

    def allreduce(self, tensors: Any, options: Any = None) -> Any:
        self._spoil(tensors[0])
        return self.gloo.allreduce(tensors, options)

    def _allgather_base(self, output: Any, tensor: Any, options: Any = None) -> Any:
        return self.gloo._allgather_base(output, self._spoil(tensor), options)

    def _reduce_scatter_base(self, output: Any, tensor: Any, options: Any = None) -> Any:
        return self.gloo._reduce_scatter_base(output, self._spoil(tensor), options)

    all_gather_single, reduce_scatter_single = _allgather_base, _reduce_scatter_base  # the names in newer torch

    def broadcast(self, tensors: Any, options: Any = None) -> Any:
        if options.rootRank == self.rank():
            self._spoil(tensors[0])
        return self.gloo.broadcast(tensors, options)

    def send(self, tensors: Any, peer: int, tag: int) -> Any:
        self._spoil(tensors[0])
        return self.gloo.send(tensors, peer, tag)

    def recv(self, tensors: Any, peer: int, tag: int) -> Any:
        return self.gloo.recv(tensors, peer, tag)


def new_faulty_group() -> dist.ProcessGroup:
    """Of all ranks. Collective."""

    def create(store: dist.Store, rank: int, size: int, timeout: Any) -> FaultyGroup:
        return FaultyGroup(dist.ProcessGroupGloo(store, rank, size, timeout))

    dist.Backend.register_backend(NAME, create, devices=["cpu"])
    return dist.new_group(backend=NAME)
