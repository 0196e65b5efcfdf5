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

_COLUMNS = 1 << 14  # words
_ROWS = 8  # that are summed together on a CPU, 1 MiB: they are still in its cache for the second sum
_MIX = (-7046029254386353131, -4658895280553007687, -7723592293110705685)  # SplitMix64's constants


@dataclass(frozen=True)
class Fingerprint:
    """tensors: their number. num_bytes: their size. checksum: 32 hexadecimal digits over names, shapes and bits.

    The first 16 are a sum of words, which any one flipped bit changes; the others depend on where each word is: two
    words that changed places leave them as they were once in 2⁶⁴ times.
    """

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
        """Sums of a tensor's bits as 64-bit words: exact, whatever the order of summation, and without a copy."""
        self._sums.append(_word_sums(_words(tensor.detach())))
        self._keys.append(zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()) | 1)
        self._num_bytes += tensor.numel() * tensor.element_size()

    def fingerprint(self) -> Fingerprint:
        """Of all that was added, in any order. Waits for the device."""
        sums = torch.stack(self._sums).tolist() if self._sums else []
        # The key is added, too: a tensor of zeros counts.
        totals = [
            sum(key * (of_tensor[i] + key) for key, of_tensor in zip(self._keys, sums, strict=True)) % 2**64
            for i in range(2)
        ]
        return Fingerprint(len(self._keys), self._num_bytes, "".join(f"{total:016x}" for total in totals))


def _words(tensor: Tensor) -> Tensor:
    """The tensor's bytes as int64; its own memory, unless that isn't made of whole words."""
    content = tensor.contiguous().view(-1).view(torch.uint8)
    if content.numel() % 8 or content.storage_offset() % 8:
        content = torch.nn.functional.pad(content, (0, -content.numel() % 8))
    return content.view(torch.int64)


def _word_sums(words: Tensor) -> Tensor:
    """int64 [2]: the sum of all words; a sum over the columns and rows of words laid out as a table, each mixed with
    its place: words that change places change the sum of two columns or of two rows. All modulo 2⁶⁴.
    """
    whole = len(words) // _COLUMNS * _COLUMNS
    table = words[:whole].view(-1, _COLUMNS)
    columns = words.new_zeros(min(_COLUMNS, len(words)))
    rows = [words[whole:].sum()[None]]
    parts = table.split(_ROWS) if words.device.type == "cpu" else (table,)
    for part in parts if whole else ():
        columns += part.sum(0)
        rows.append(part.sum(1))
    columns[: len(words) - whole] += words[whole:]
    return torch.stack([columns.sum(), _mixed(columns).sum() + _mixed(torch.cat(rows)).sum()])


def _mixed(values: Tensor) -> Tensor:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014) of each value and its place: one to one, and not linear."""
    golden, first, second = _MIX
    z = values + golden * torch.arange(1, len(values) + 1, device=values.device)
    z = (z ^ _shifted(z, 30)) * first
    z = (z ^ _shifted(z, 27)) * second
    return z ^ _shifted(z, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """To the right, as if they had no sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


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
