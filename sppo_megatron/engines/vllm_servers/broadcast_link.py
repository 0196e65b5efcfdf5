"""A process group of one trainer rank and the workers of one server, and weights broadcast over it in buckets.

The sender is rank 0. A bucket is a header (its length as int64, then JSON) and one block of bytes; a header of length 0
ends the stream. A tensor starts at a multiple of 16 bytes in its block, so that it can be read in place.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_ALIGNMENT = 16


class BroadcastLink:
    """NCCL on CUDA, gloo on CPU; in no way part of torch's default group."""

    def __init__(self, group: Any, device: torch.device) -> None:
        self._group = group
        self._device = device

    @staticmethod
    def listen(host: str, world_size: int, timeout_s: float) -> tuple[int, dist.TCPStore]:
        """(port, store) that the others join; `open` completes the sender's side. Doesn't wait for them.

        host: an address of this machine, the only one that is listened on. A store by itself takes all of them.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, 0), family=family, backlog=max(world_size, 128))
        port: int = listener.getsockname()[1]
        store = dist.TCPStore(
            host,
            port,
            world_size,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
            master_listen_fd=listener.detach(),
        )
        return port, store

    @staticmethod
    def open(store: dist.TCPStore, host: str, world_size: int, device: torch.device, timeout_s: float) -> BroadcastLink:
        """The sender's side, once the others are joining. host: its own address, as they reach it."""
        return BroadcastLink(_process_group(store, 0, world_size, device, host, timeout_s), device)

    @staticmethod
    def join(host: str, port: int, rank: int, world_size: int, device: torch.device, timeout_s: float) -> BroadcastLink:
        """The receiver's side. host, port: of the sender's store."""
        store = dist.TCPStore(
            host, port, world_size, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
        )
        own = local_address(host, port)
        return BroadcastLink(_process_group(store, rank, world_size, device, own, timeout_s), device)

    def send(self, bucket: list[tuple[str, Tensor]]) -> None:
        """One bucket; an empty one ends the stream. Raises RuntimeError if a receiver is gone."""
        entries: list[list[Any]] = []
        offset = 0
        for name, tensor in bucket:
            entries.append([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), offset])
            offset += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        header = json.dumps(entries).encode() if bucket else b""
        self._broadcast(torch.tensor([len(header), offset], dtype=torch.int64, device=self._device))
        if not bucket:
            return
        self._broadcast(torch.frombuffer(bytearray(header), dtype=torch.uint8).to(self._device))
        block = torch.empty(offset, dtype=torch.uint8, device=self._device)
        for (_, tensor), (*_, start) in zip(bucket, entries, strict=True):
            block[start : start + tensor.nbytes] = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        self._broadcast(block)

    def receive(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors until the end of the stream, each a view of its bucket."""
        while True:
            sizes = torch.zeros(2, dtype=torch.int64, device=self._device)
            self._broadcast(sizes)
            header_bytes, block_bytes = sizes.tolist()
            if header_bytes == 0:
                return
            header = torch.empty(header_bytes, dtype=torch.uint8, device=self._device)
            self._broadcast(header)
            block = torch.empty(block_bytes, dtype=torch.uint8, device=self._device)
            self._broadcast(block)
            for name, dtype_name, shape, start in json.loads(bytes(header.tolist())):
                dtype = getattr(torch, dtype_name)
                num_bytes = torch.Size(shape).numel() * dtype.itemsize
                yield name, block[start : start + num_bytes].view(dtype).reshape(shape)

    def _broadcast(self, tensor: Tensor) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        self._group.broadcast([tensor], options).wait()


def local_address(host: str, port: int) -> str:
    """The address of this machine from which `host` is reached."""
    with socket.create_connection((host, port), timeout=30) as connection:
        return connection.getsockname()[0]


def _process_group(
    store: dist.TCPStore, rank: int, world_size: int, device: torch.device, own_address: str, timeout_s: float
) -> Any:
    timeout = timedelta(seconds=timeout_s)
    if device.type == "cuda":
        options: Any = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        with _errors_raised_by_wait():
            return dist.ProcessGroupNCCL(dist.PrefixStore("weights", store), rank, world_size, options)
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timeout
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=own_address)]
    return dist.ProcessGroupGloo(dist.PrefixStore("weights", store), rank, world_size, options)


@contextlib.contextmanager
def _errors_raised_by_wait() -> Iterator[None]:
    """An NCCL group made within raises from `wait` if the other side is gone. Else its watchdog ends the process."""
    name = "TORCH_NCCL_BLOCKING_WAIT"  # read by the group's constructor
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
