"""What passed through a stream of weights, by a checksum that both ends can compute, and whether it arrived."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sppo_megatron.cluster.consensus import of_all_ranks
from sppo_megatron.errors import TrainingError

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Fingerprint:
    """tensors: their number. num_bytes: their size. checksum: 16 hexadecimal digits over names, shapes and bits."""

    tensors: int
    num_bytes: int
    checksum: str

    def __str__(self) -> str:
        return f"{self.tensors} tensors, {self.num_bytes} bytes, checksum {self.checksum}"


class WeightCounter:
    """Watches (name, tensor) pairs go by. Sums stay on the tensors' device until `fingerprint` is asked for."""

    def __init__(self) -> None:
        self._keys: list[int] = []
        self._sums: list[Tensor] = []
        self._num_bytes = 0

    def watch(self, weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same pairs, counted as they are taken."""
        for name, tensor in weights:
            self.add(name, tensor)
            yield name, tensor

    def add(self, name: str, tensor: Tensor) -> None:
        """The bits of a tensor, read as integers and added up in 64 bits: exact, whatever the order of summation."""
        bits = tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()])
        self._sums.append(bits.sum(dtype=torch.int64))
        self._keys.append(zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()) | 1)
        self._num_bytes += tensor.numel() * tensor.element_size()

    def fingerprint(self) -> Fingerprint:
        """Of all that was added, in any order. Waits for the device."""
        sums = torch.stack(self._sums).tolist() if self._sums else []
        # The key is added, too: a tensor of zeros counts.
        total = sum(key * (value + key) for key, value in zip(self._keys, sums, strict=True)) % 2**64
        return Fingerprint(len(self._keys), self._num_bytes, f"{total:016x}")


def check_version(current: int, version: int) -> None:
    """Raises ValueError if weights would go back in time."""
    if version < current:
        raise ValueError(f"weights of version {version} are older than version {current}")


def find_difference(report: Mapping[str, Any] | None, version: int, sent: Fingerprint) -> str | None:
    """What a worker reports against what was sent; None if it is the same.

    report: version, tensors, num_bytes and checksum of what the worker loaded last, and `problem`, what its model said
    about taking it; None if it never loaded any.
    """
    if report is None:
        return "it never received weights"
    if report.get("problem"):
        return str(report["problem"])
    expected = {"version": version, **asdict(sent)}
    differing = [key for key, value in expected.items() if report.get(key) != value]
    if not differing:
        return None
    return "it has " + ", ".join(f"{key} {report.get(key)} and not {expected[key]}" for key in differing)


def raise_everywhere(problems: Mapping[str, str], group: dist.ProcessGroup | None = None) -> None:
    """Raises TrainingError on every rank if any rank has a problem. problems: replica -> what is wrong."""
    found = {replica: problem for part in of_all_ranks(dict(problems), group) for replica, problem in part.items()}
    if found:
        raise TrainingError(
            "the policy's weights did not arrive: " + "; ".join(f"{name}: {text}" for name, text in found.items())
        )
