"""The fused loss over vocabulary shards, over context-parallel ranks and over both, against plain torch in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
import torch.distributed as dist

from sppo_megatron.parallel import linear_sppo_loss, sequence_sum, vocab_parallel_linear_log_probs
from tests.distributed.parallel.checks import GRAD_TOLERANCE, VALUE_TOLERANCE, close, same_on_all_ranks

LENGTHS = [9, 0, 14, 5, 1, 8]
COEFFICIENT = torch.tensor([0.5, 0.0, 0.125, 1.0, 0.25, 0.1875], dtype=torch.float64)
ROW_BYTES = 4  # of a float32 logit


@cache
def layout_groups(layout: str) -> tuple[dist.ProcessGroup | None, dist.ProcessGroup | None]:
    """(tp, cp) of `tp`, `cp` or `tp-cp`: pairs of vocabulary shards, the rest over the sequence."""
    if layout == "tp":
        return dist.group.WORLD, None
    if layout == "cp":
        return None, dist.group.WORLD
    world = range(dist.get_world_size())
    tp_size = min(2, len(world))
    tp_group, _ = dist.new_subgroups_by_enumeration([list(world[i : i + tp_size]) for i in world[::tp_size]])
    cp_group, _ = dist.new_subgroups_by_enumeration([list(world[i::tp_size]) for i in range(tp_size)])
    return tp_group, cp_group


def sppo_case(
    group: dist.ProcessGroup,
    layout: str,
    dtype: torch.dtype = torch.float32,
    width: int = 16,
    vocab_size: int = 101,
    padded_size: int = 112,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    budget: int = 2**30,
    padding: float = 1e4,
    uneven: bool = False,
) -> None:
    """uneven: the first context-parallel rank has no token at all, the last one the whole of every other sequence."""
    tp_group, cp_group = layout_groups(layout)
    tp_rank, tp_size = (dist.get_rank(tp_group), dist.get_world_size(tp_group)) if tp_group else (0, 1)
    cp_rank, cp_size = (dist.get_rank(cp_group), dist.get_world_size(cp_group)) if cp_group else (0, 1)
    generator = torch.Generator().manual_seed(4)
    ids = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    ids = ids[torch.randperm(len(ids), generator=generator)]
    tokens = len(ids)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64).to(dtype)
    weight = (0.3 * torch.randn(padded_size, width, generator=generator, dtype=torch.float64)).to(dtype)
    weight[vocab_size:] = padding
    targets = torch.randint(0, vocab_size, (tokens,), generator=generator)
    old = (-5 + torch.randn(tokens, generator=generator)).float()
    delta = torch.randn(len(LENGTHS), generator=generator)

    hidden_64 = hidden.double().clone().requires_grad_()
    weight_64 = weight.double()[:vocab_size].clone().requires_grad_()
    log_probs_64 = torch.log_softmax(hidden_64 @ weight_64.t() / temperature, -1).gather(1, targets[:, None])[:, 0]
    s_64 = torch.zeros(len(LENGTHS), dtype=torch.float64).index_add(0, ids, log_probs_64 - old.double())
    loss_64 = (COEFFICIENT * (s_64 - delta.double()).square()).sum()
    (0.25 * loss_64).backward()
    weight_grad_64 = torch.zeros(padded_size, width, dtype=torch.float64)
    weight_grad_64[:vocab_size] = weight_64.grad

    owner = torch.randint(0, cp_size, (tokens,), generator=generator)
    if uneven and cp_size > 1:
        owner = torch.where(ids % 2 == 0, cp_size - 1, owner.clamp(min=1))
    mine = torch.nonzero(owner == cp_rank).flatten()
    rows = slice(tp_rank * padded_size // tp_size, (tp_rank + 1) * padded_size // tp_size)
    hidden, weight = hidden[mine].clone().requires_grad_(), weight[rows].clone().requires_grad_()
    result = linear_sppo_loss(
        hidden,
        weight,
        targets[mine],
        old[mine],
        ids[mine],
        delta,
        COEFFICIENT.float(),
        lengths=LENGTHS,
        tp_group=tp_group,
        cp_group=cp_group,
        vocab_size=vocab_size,
        temperature=temperature,
        chunk_size=chunk_size,
        logits_budget=budget,
    )
    (0.25 * result.loss_sum).backward()
    for name, actual, expected in (
        ("loss", result.loss_sum, loss_64),
        ("log-ratios", result.log_ratio, s_64),
        ("log-probs", result.log_probs, log_probs_64[mine]),
    ):
        close(name, actual.detach(), expected.detach(), VALUE_TOLERANCE[dtype])
        assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32), f"{name}: {actual.dtype}"
    same_on_all_ranks("loss", result.loss_sum, group)
    same_on_all_ranks("log-ratios", result.log_ratio, group)
    close("gradient of hidden", hidden.grad, hidden_64.grad[mine], GRAD_TOLERANCE[dtype])
    assert hidden.grad.dtype == weight.grad.dtype == dtype, f"gradients are {hidden.grad.dtype}, {weight.grad.dtype}"
    weight_grad = weight.grad.float() if dtype != torch.float64 else weight.grad
    if cp_group is not None:
        dist.all_reduce(weight_grad, group=cp_group)  # what the data-parallel reduction does
    close("gradient of weight", weight_grad, weight_grad_64[rows], GRAD_TOLERANCE[dtype])


def equals_generic_case(group: dist.ProcessGroup, layout: str) -> None:
    """The same numbers as log-probs, then sums over the sequence, then the square."""
    tp_group, cp_group = layout_groups(layout)
    tp_rank, tp_size = (dist.get_rank(tp_group), dist.get_world_size(tp_group)) if tp_group else (0, 1)
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(64, 32, generator=generator)
    weight = 0.3 * torch.randn(256, 32, generator=generator)
    targets, ids = torch.randint(0, 250, (64,), generator=generator), torch.arange(64) % 3
    if cp_group is not None:
        mine = slice(dist.get_rank(cp_group), None, dist.get_world_size(cp_group))
        hidden, targets, ids = hidden[mine], targets[mine], ids[mine]
    weight = weight[tp_rank * 256 // tp_size : (tp_rank + 1) * 256 // tp_size].contiguous()
    delta, coefficient = torch.tensor([1.0, -1.0, 0.0]), torch.tensor([0.5, 1.0, 0.0])
    old = torch.full(targets.shape, -6.0)
    outcomes = []
    for fused in (False, True):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if fused:
            loss = linear_sppo_loss(
                h,
                w,
                targets,
                old,
                ids,
                delta,
                coefficient,
                lengths=[22, 21, 21],
                tp_group=tp_group,
                cp_group=cp_group,
                vocab_size=250,
                logits_budget=30 * 256 * ROW_BYTES,
            ).loss_sum
        else:
            log_probs = vocab_parallel_linear_log_probs(h, w, targets, tp_group=tp_group, vocab_size=250)
            s = sequence_sum(log_probs - old, ids, 3, cp_group=cp_group)
            loss = (coefficient * (s - delta).square()).sum()
        loss.backward()
        outcomes.append((loss.detach(), h.grad, w.grad))
    for name, one, other in zip(("loss", "gradient of hidden", "gradient of weight"), *outcomes, strict=True):
        close(name, one, other, 1e-6)


def cases() -> dict[str, Callable[[dist.ProcessGroup], None]]:
    named: dict[str, Callable[[dist.ProcessGroup], None]] = {}
    for layout in ("tp", "cp", "tp-cp"):
        case = partial(sppo_case, layout=layout)
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            named[f"sppo {layout} {str(dtype).removeprefix('torch.')}"] = partial(case, dtype=dtype)
        for temperature in (0.5, 2.0):
            named[f"sppo {layout} temperature {temperature}"] = partial(case, temperature=temperature)
        named[f"sppo {layout} budget of one sequence"] = partial(case, budget=15 * 112 * ROW_BYTES)
        named[f"sppo {layout} budget of nothing"] = partial(case, budget=1, chunk_size=4)
        named[f"sppo {layout} chunk"] = partial(case, chunk_size=3)
        named[f"sppo {layout} padding nan"] = partial(case, padding=float("nan"), budget=20 * 112 * ROW_BYTES)
        named[f"sppo {layout} whole shards of padding"] = partial(case, vocab_size=13, padding=float("nan"))
        named[f"sppo {layout} uneven"] = partial(case, uneven=True)
        named[f"sppo {layout} uneven groups"] = partial(case, uneven=True, budget=15 * 112 * ROW_BYTES)
        named[f"sppo {layout} equals generic"] = partial(equals_generic_case, layout=layout)
    return named
