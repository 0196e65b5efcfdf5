"""The softmax over a vocabulary seen tile by tile and shard by shard: its statistics, and the gradient of its logits.

Per token, with logits z (already divided by the temperature), two or three sums are enough (online softmax,
Milakov & Gimelshein 2018, arXiv 1805.02867):

    max        m = max_j z_j
    sum_exp    S = sum_j exp(z_j - m)
    target     z_t, held by exactly one shard, 0 elsewhere
    weighted   U = sum_j exp(z_j - m) (z_j - m), only for the entropy

    log p_t = (z_t - m) - log S        entropy = log S - U / S        (nats)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from .kernels import Kernels
from .vocab_shard import VocabShard

# exp() of anything below is 0 in float32 and float64; clamped there, so that 0 * log 0 is 0 and not NaN.
_LOG_ZERO = -1e4


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 if an input is float64."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


class SoftmaxStatistics:
    """Statistics of `targets` [N] over the columns seen so far, packed as [3 or 4, N] for one collective.

    An empty shard keeps max = the lowest finite number (not -inf, which would give 0 * inf) and sums of 0.
    """

    def __init__(
        self,
        targets: Tensor,
        shard: VocabShard,
        dtype: torch.dtype,
        with_entropy: bool = False,
        kernels: Kernels | None = None,
    ) -> None:
        self.targets, self.shard, self.with_entropy, self.kernels = targets, shard, with_entropy, kernels
        self.packed = torch.zeros(4 if with_entropy else 3, targets.numel(), dtype=dtype, device=targets.device)
        self.packed[0] = torch.finfo(dtype).min

    def update(
        self, tile: Tensor, token: int, column: int, scratch: Tensor | None = None, scale: float = 1.0
    ) -> Tensor | None:
        """Adds the logits `tile * scale` [n, v] of tokens [token, token + n) and local columns [column, column + v).

        Returns what the tile holds now, to give to `LogitGradient.write`: None, still the logits (kernels only read
        them), or reference [n, 1], exp(logits - reference); with the entropy the tile is of no further use. scratch:
        of the shape of the tile, overwritten; needed without kernels and with the entropy only.
        """
        rows, columns = tile.shape
        packed = self.packed[:, token : token + rows]
        targets = self.targets[token : token + rows]
        if self.kernels is not None:
            self.kernels.update_statistics(tile, targets, packed, self.shard.start + column, scale)
            return None
        assert scale == 1, "without kernels a tile holds the logits themselves"
        largest, sum_exp, target = packed[0], packed[1], packed[2]
        index, inside = self.shard.locate(targets, column, columns)
        target += tile.gather(1, index).where(inside, 0).squeeze(1)

        new_largest = torch.maximum(largest, tile.amax(1))
        shift = largest - new_largest
        decay = shift.exp()
        reference = new_largest.unsqueeze(1)
        tile -= reference
        if scratch is None:
            exp = tile.exp_()
        else:
            exp = torch.exp(tile.clamp_(min=_LOG_ZERO), out=scratch)
            weighted = packed[3]
            weighted += shift * sum_exp  # before sum_exp moves on
            weighted.mul_(decay).add_(tile.mul_(exp).sum(1))
        sum_exp.mul_(decay).add_(exp.sum(1))
        largest.copy_(new_largest)
        return reference

    def finish(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """(log_probs, log_sum_exp, entropy or None), each [N], the same bits on every rank of the group.

        One all-gather for all tokens and statistics, in every rank of the group; none if there are no tokens.
        A target outside the vocabulary, which raises on CPU, gets a NaN log-prob on other devices.
        """
        group, shards = self.shard.group, self.packed.unsqueeze(0)
        if group is not None and self.targets.numel() > 0:
            tp_size, (count, tokens) = dist.get_world_size(group), self.packed.shape
            gathered = self.packed.new_empty(tp_size * count, tokens)
            dist.all_gather_into_tensor(gathered, self.packed, group=group)
            shards = gathered.view(tp_size, count, tokens)

        largest = shards[:, 0].amax(0)
        shift = shards[:, 0] - largest
        decay = shift.exp()
        sum_exp = (shards[:, 1] * decay).sum(0)
        log_sum = sum_exp.log()
        log_probs = (shards[:, 2].sum(0) - largest) - log_sum
        if self.targets.device.type != "cpu":
            outside = (self.targets < 0) | (self.targets >= self.shard.vocab_size)
            log_probs.masked_fill_(outside, float("nan"))
        entropy = None
        if self.with_entropy:
            entropy = log_sum - ((shards[:, 3] + shift * shards[:, 1]) * decay).sum(0) / sum_exp
        return log_probs, largest + log_sum, entropy


@dataclass(frozen=True)
class LogitGradient:
    """The gradient of the loss with respect to the logits z, as `-row_i * tile_ij`.

    With g, h = the upstream gradients of the log-prob and the entropy E of one token, and p = softmax(z):

        dL/dz_j = g (1[j = t] - p_j) - h p_j (log p_j + E)

    Without h, tile = p - 1[j = t] and row = g: the coefficient costs no pass over the tile, it can go onto rows of
    whatever the tile is multiplied with. With h, row is None and the tile holds everything. All tensors are [N].
    The one-hot is subtracted in the compute dtype: p - 1 of a likely target would be lost in the rounding of p.
    """

    targets: Tensor
    shard: VocabShard
    log_sum_exp: Tensor
    log_prob_grad: Tensor
    entropy: Tensor | None = None
    entropy_grad: Tensor | None = None
    kernels: Kernels | None = None

    @property
    def row(self) -> Tensor | None:
        return self.log_prob_grad if self.entropy_grad is None else None

    def normalized(self) -> tuple[Tensor, LogitGradient]:
        """(unit, the gradient divided by it): unit [] is the largest upstream coefficient, so that none exceeds 1."""
        upstream = [grad for grad in (self.log_prob_grad, self.entropy_grad) if grad is not None and grad.numel() > 0]
        if not upstream:
            return self.log_prob_grad.new_ones(()), self
        unit = torch.stack([grad.abs().amax() for grad in upstream]).amax()
        unit = unit.clamp_min(torch.finfo(unit.dtype).tiny)
        entropy_grad = None if self.entropy_grad is None else self.entropy_grad / unit
        return unit, replace(self, log_prob_grad=self.log_prob_grad / unit, entropy_grad=entropy_grad)

    def write(
        self,
        tile: Tensor,
        token: int,
        column: int,
        dtype: torch.dtype,
        scratch: Tensor | None = None,
        scale: float = 1.0,
        reference: Tensor | None = None,
    ) -> Tensor:
        """The tile of the formula, in this dtype, for the logits `tile * scale` [n, v] of tokens [token, token + n) and
        local columns [column, column + v).

        Times the row if kernels write it: that costs them nothing, and saves a copy of what the tile is multiplied
        with. In place of `tile` if it has the dtype. scratch: needed with entropy_grad and without kernels.
        reference: not None if the tile holds exp(logits - reference), as `SoftmaxStatistics.update` left it.
        """
        tokens = slice(token, token + tile.shape[0])
        if self.kernels is not None:
            out = tile if tile.dtype == dtype else torch.empty_like(tile, dtype=dtype)
            self.write_with_kernels(tile, out, token, column, scale, None if self.row is None else self.row[tokens])
            return out
        index, inside = self.shard.locate(self.targets[tokens], column, tile.shape[1])
        log_sum_exp, one_hot = self.log_sum_exp[tokens].unsqueeze(1), inside.to(tile.dtype)
        if reference is not None:
            tile.mul_((reference - log_sum_exp).exp_())
        elif self.entropy_grad is None:
            tile.sub_(log_sum_exp).exp_()
        else:
            assert self.entropy is not None and scratch is not None
            upstream, entropy_grad = self.log_prob_grad[tokens].unsqueeze(1), self.entropy_grad[tokens].unsqueeze(1)
            prob = torch.exp(tile.sub_(log_sum_exp).clamp_(min=_LOG_ZERO), out=scratch)
            tile.add_(self.entropy[tokens].unsqueeze(1)).mul_(entropy_grad).add_(upstream).mul_(prob)
            one_hot = one_hot * upstream
        return tile.scatter_add_(1, index, -one_hot).to(dtype)

    def write_with_kernels(
        self,
        tile: Tensor,
        out: Tensor,
        token: int,
        column: int,
        scale: float,
        coefficient: Tensor | None = None,
    ) -> None:
        """The same into `out` [n, v] of any dtype, which may be `tile`; row i times coefficient[i] if given."""
        assert self.kernels is not None
        tokens = slice(token, token + tile.shape[0])
        with_entropy = self.entropy_grad is not None
        self.kernels.write_gradient(
            tile,
            out,
            self.targets[tokens],
            self.log_sum_exp[tokens],
            self.shard.start + column,
            scale,
            log_prob_grad=self.log_prob_grad[tokens] if with_entropy else None,
            entropy_grad=None if self.entropy_grad is None else self.entropy_grad[tokens],
            entropy=None if self.entropy is None else self.entropy[tokens],
            coefficient=coefficient,
        )
