"""Tiles of logits = hidden @ head.T / temperature: how large, in which buffer, and the matrix products around them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .softmax_statistics import compute_dtype

# Bounds on one tile of logits: 4 MiB on CPU, where it should stay in the cache (measured: 512 tokens or less make the
# gradient of weight slow, more columns gain nothing), and 128 MiB on an accelerator, where it should fill the device;
# many tokens there, since with all of them in one tile the gradient of weight needs no accumulator.
_TILE_ELEMENTS = {"cpu": 1024 * 1024}
_TILE_TOKENS = {"cpu": 1024}
_MIN_TILE_COLUMNS = 256


def choose_tiles(tokens: int, columns: int, device_type: str, chunk_size: int | None = None) -> tuple[int, int]:
    """(tokens, columns) of one tile, at least 1 each.

    The tokens first, in equal parts of at most chunk_size; then as many columns as the budget allows, a multiple of 64
    unless all of them fit.
    """
    parts = math.ceil(tokens / (chunk_size or _TILE_TOKENS.get(device_type, 8192)))
    tile_tokens = math.ceil(tokens / parts) if parts else 1
    fitting = _TILE_ELEMENTS.get(device_type, 32 * 1024 * 1024) // tile_tokens // 64 * 64
    return tile_tokens, max(1, min(columns, max(_MIN_TILE_COLUMNS, fitting)))


def multiplies_low_precision(device: torch.device) -> bool:
    """Whether torch.mm takes bfloat16 and float16 operands to a float32 result there."""
    return device.type == "cuda" and torch.version.hip is None


class LogitTiles:
    """Buffers for passes over the logits, and the three matrix products, all with results in the compute dtype.

    tokens, columns: the bounds of the tiles. The buffers are owned here; one tile overwrites the other, or with
    keep=True every tile has its own place. Operands in lower precision are taken up
    to the compute dtype first, or multiplied as they are if the device gives the product in float32 (`mixed`).
    scale: what is still to be multiplied to a tile, 1 or (deferred, if kernels can do it) 1/temperature.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        columns: int,
        temperature: float,
        chunk_size: int | None,
        *,
        deferred: bool = False,
        scratch: bool = False,
        keep: bool = False,
    ) -> None:
        self.dtype, self.temperature, self.keep = compute_dtype(hidden, weight), temperature, keep
        self.mixed = hidden.dtype == weight.dtype != self.dtype and multiplies_low_precision(hidden.device)
        self.operand_dtype = hidden.dtype if self.mixed else self.dtype
        self.scale = 1 / temperature if self.mixed and deferred else 1.0
        self.rows = self.operand(hidden)
        self._weight = weight
        self._count = count = hidden.shape[0]
        rows, width = choose_tiles(count, columns, hidden.device.type, chunk_size)
        self.tokens = [(i, min(i + rows, count)) for i in range(0, count, rows)]
        self.columns = [(j, min(j + width, columns)) for j in range(0, columns, width)]
        self._logits = hidden.new_empty(count * columns if keep else rows * width, dtype=self.dtype)
        self._scratch = torch.empty_like(self._logits) if scratch else None

    def operand(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.operand_dtype)

    def head(self, column: int, end_column: int) -> Tensor:
        """These rows of the LM head [v, H] as an operand."""
        return self.operand(self._weight[column:end_column])

    def buffers(self, token: int, end: int, column: int, end_column: int) -> tuple[Tensor, Tensor | None]:
        """The buffer of this tile and the scratch one, each contiguous [n, v], with whatever they hold."""
        rows, width = end - token, end_column - column
        start = column * self._count + token * width if self.keep else 0
        scratch = None if self._scratch is None else self._scratch[: rows * width].view(rows, width)
        return self._logits[start : start + rows * width].view(rows, width), scratch

    def write_logits(self, tile: Tensor, token: int, end: int, head: Tensor) -> None:
        """tile = rows @ head.T / temperature, but for the factor `scale`."""
        alpha = 1.0 if self.scale != 1 else 1 / self.temperature
        if not self.mixed:
            torch.addmm(tile, self.rows[token:end], head.t(), beta=0, alpha=alpha, out=tile)
            return
        torch.mm(self.rows[token:end], head.t(), out_dtype=self.dtype, out=tile)
        if alpha != 1:
            tile.mul_(alpha)

    def add_product(self, out: Tensor, a: Tensor, b: Tensor, alpha: float = 1.0) -> None:
        """out += alpha * a @ b, with a and b in the operand dtype and `out` in that or in the compute dtype."""
        if out.dtype != a.dtype:
            torch.addmm(out, a, b, out_dtype=out.dtype, alpha=alpha, out=out)
        else:
            out.addmm_(a, b, alpha=alpha)
