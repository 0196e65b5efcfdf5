"""A safetensors file written tensor by tensor: the library's own writer wants all of them in memory at once.

The format is an 8-byte header length, a JSON header that says where in the data each tensor is, and the data. The
header comes first and is known last, so room is left for it; blanks at its end are part of the format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HEADER_BYTES = 256 << 10

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def raw_bytes(tensor: Tensor) -> Any:
    """A tensor's bytes in the order of its elements, as a buffer; a tensor on the CPU is not copied."""
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


class SafetensorsWriter:
    """One file. `add` while `has_room`, then `close`."""

    def __init__(self, path: Path):
        self.num_bytes = 0
        self._entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
        self._header_bytes = len(json.dumps(self._entries))
        self._file = path.open("wb")
        self._file.seek(8 + HEADER_BYTES)

    def has_room(self, name: str, tensor: Tensor, max_bytes: int) -> bool:
        """Whether the tensor still fits: the first one always does."""
        if self.num_bytes == 0:
            return True
        entry = len(json.dumps({name: self._entry(tensor)}))
        return self.num_bytes + tensor.nbytes <= max_bytes and self._header_bytes + entry <= HEADER_BYTES

    def add(self, name: str, tensor: Tensor) -> None:
        entry = self._entry(tensor)
        self._entries[name] = entry
        self._header_bytes += len(json.dumps({name: entry}))
        self._file.write(raw_bytes(tensor))
        self.num_bytes += tensor.nbytes

    def close(self) -> None:
        header = json.dumps(self._entries, separators=(",", ":")).encode().ljust(HEADER_BYTES)
        self._file.seek(0)
        self._file.write(len(header).to_bytes(8, "little") + header)
        self._file.close()

    def _entry(self, tensor: Tensor) -> dict:
        span = [self.num_bytes, self.num_bytes + tensor.nbytes]
        return {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
