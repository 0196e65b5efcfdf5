"""What every rank runs: all multi-process cases of `sppo_megatron.parallel` in one set of processes.

    python -m torch.distributed.run --standalone --nproc-per-node N worker.py results.json

Rank 0 writes {case: [message of a failure, ...]}; an empty list is a pass. The expected values are plain torch in
float64 on the unsharded inputs, which every rank draws from the same seed.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from unittest import mock

import torch
import torch.distributed as dist

from sppo_megatron.parallel import (
    kernels,
    logit_tiles,
    reduce_max,
    reduce_sums,
    sequence_sum,
    vocab_parallel_linear_log_probs,
    vocab_parallel_log_probs,
    zigzag_indices,
)
from tests.distributed.parallel import sppo_cases
from tests.distributed.parallel.checks import GRAD_TOLERANCE, VALUE_TOLERANCE, close, same_on_all_ranks


def expected_log_probs(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    log_probs = torch.log_softmax(logits, dim=-1)
    return log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1), -(log_probs.exp() * log_probs).sum(-1)


def objective(log_probs, entropy, upstream: torch.Tensor, with_entropy: bool) -> torch.Tensor:
    """A scalar with random upstream gradients, the same on every rank."""
    total = (log_probs * upstream[0].to(log_probs)).sum()
    return total + (entropy * upstream[1].to(log_probs)).sum() if with_entropy else total


def linear_case(
    group: dist.ProcessGroup,
    dtype: torch.dtype = torch.float32,
    tokens: int = 24,
    width: int = 16,
    vocab_size: int = 101,
    padded_size: int = 112,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    with_entropy: bool = False,
    sequence_parallel: bool = False,
    padding: float = 1e4,
) -> None:
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(padded_size, width, generator=generator, dtype=torch.float64).to(dtype)
    weight[vocab_size:] = padding
    targets = torch.randint(0, vocab_size, (tokens,), generator=generator)
    upstream = torch.randn(2, tokens, generator=generator, dtype=torch.float64)

    hidden_64 = hidden.double().clone().requires_grad_()
    weight_64 = weight.double()[:vocab_size].clone().requires_grad_()
    expected = expected_log_probs(hidden_64 @ weight_64.t() / temperature, targets)
    objective(*expected, upstream, with_entropy).backward()
    expected_weight_grad = torch.zeros(padded_size, width, dtype=torch.float64)
    expected_weight_grad[:vocab_size] = weight_64.grad

    rows = slice(rank * padded_size // size, (rank + 1) * padded_size // size)
    mine = slice(rank * tokens // size, (rank + 1) * tokens // size) if sequence_parallel else slice(0, tokens)
    hidden, weight = hidden[mine].clone().requires_grad_(), weight[rows].clone().requires_grad_()
    actual = vocab_parallel_linear_log_probs(
        hidden,
        weight,
        targets,
        tp_group=group,
        vocab_size=vocab_size,
        temperature=temperature,
        chunk_size=chunk_size,
        with_entropy=with_entropy,
        sequence_parallel=sequence_parallel,
    )
    actual = actual if with_entropy else (actual, None)
    objective(*actual, upstream, with_entropy).backward()
    check(actual, expected, dtype, group, with_entropy)
    close("gradient of hidden", hidden.grad, hidden_64.grad[mine], GRAD_TOLERANCE[dtype])
    close("gradient of weight", weight.grad, expected_weight_grad[rows], GRAD_TOLERANCE[dtype])
    assert hidden.grad.dtype == weight.grad.dtype == dtype, f"gradients are {hidden.grad.dtype}, {weight.grad.dtype}"


def small_tiles_case(group: dist.ProcessGroup) -> None:
    """Several tiles of the vocabulary and of the tokens on every rank, the last ones smaller."""
    with mock.patch.object(logit_tiles, "choose_tiles", lambda *_: (7, 5)):
        linear_case(group, with_entropy=True, temperature=0.5)


def logits_case(
    group: dist.ProcessGroup,
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, ...] = (4, 6),
    vocab_size: int = 101,
    padded_size: int = 112,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    with_entropy: bool = False,
    padding: float = 1e4,
) -> None:
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    generator = torch.Generator().manual_seed(2)
    logits = (4 * torch.randn(*shape, padded_size, generator=generator, dtype=torch.float64)).to(dtype)
    logits[..., vocab_size:] = padding
    targets = torch.randint(0, vocab_size, shape, generator=generator)
    upstream = torch.randn(2, *shape, generator=generator, dtype=torch.float64)

    logits_64 = logits.double()[..., :vocab_size].clone().requires_grad_()
    expected = expected_log_probs(logits_64 / temperature, targets)
    objective(*expected, upstream, with_entropy).backward()
    expected_grad = torch.zeros(*shape, padded_size, dtype=torch.float64)
    expected_grad[..., :vocab_size] = logits_64.grad

    columns = slice(rank * padded_size // size, (rank + 1) * padded_size // size)
    logits = logits[..., columns].clone().requires_grad_()
    before = logits.detach().clone()
    actual = vocab_parallel_log_probs(
        logits,
        targets,
        tp_group=group,
        vocab_size=vocab_size,
        temperature=temperature,
        chunk_size=chunk_size,
        with_entropy=with_entropy,
    )
    actual = actual if with_entropy else (actual, None)
    objective(*actual, upstream, with_entropy).backward()
    check(actual, expected, dtype, group, with_entropy)
    close("gradient of logits", logits.grad, expected_grad[..., columns], GRAD_TOLERANCE[dtype])
    assert logits.grad.dtype == dtype, f"gradient is {logits.grad.dtype}"
    assert torch.equal(logits.detach().nan_to_num(), before.nan_to_num()), "the caller's logits were edited"


def check(actual, expected, dtype: torch.dtype, group: dist.ProcessGroup, with_entropy: bool) -> None:
    for name, one, other in zip(("log_probs", "entropy")[: 1 + with_entropy], actual, expected, strict=False):
        close(name, one, other.detach(), VALUE_TOLERANCE[dtype])
        same_on_all_ranks(name, one, group)
        wanted = torch.float64 if dtype == torch.float64 else torch.float32
        assert one.dtype == wanted, f"{name} are {one.dtype}, expected {wanted}"


def square_of_split_sum(group: dist.ProcessGroup) -> None:
    """s = .4 + .2 over two ranks, target 1: the loss is .16 and not 1.0, and every token's gradient is 2 (s - 1)."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    values = torch.tensor([{0: 0.4, 1: 0.2}.get(rank, 0.0) if size > 1 else 0.6], requires_grad=True)
    s = sequence_sum(values, torch.zeros(1, dtype=torch.long), 1, cp_group=group)
    loss = (s - 1.0).square().sum()
    loss.backward()
    close("loss", loss.detach(), torch.tensor(0.16), 1e-6)
    close("gradient", values.grad, torch.tensor([-0.8]), 1e-6)


def packed_sequences(group: dist.ProcessGroup) -> None:
    """Two packed sequences in the load-balanced layout: sums, and a parameter's gradient summed over ranks."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    lengths = [2 * size, 6 * size]
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(sum(lengths), generator=generator)
    ids = torch.repeat_interleave(torch.tensor([0, 2]), torch.tensor(lengths))  # sequence 1 has no token
    target = torch.tensor([0.5, -0.5, 0.25])

    parameter_64 = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    sums_64 = torch.zeros(3, dtype=torch.float64).index_add(0, ids, parameter_64 * features.double())
    (sums_64 - target).square().sum().backward()

    mine = zigzag_indices(lengths, size, rank)
    parameter = torch.tensor(0.3, requires_grad=True)
    sums = sequence_sum(parameter * features[mine], ids[mine], 3, cp_group=group)
    (sums - target).square().sum().backward()
    dist.all_reduce(parameter.grad, group=group)  # what the data-parallel reduction does
    close("sums", sums.detach(), sums_64.detach(), 1e-6)
    same_on_all_ranks("sums", sums, group)
    close("gradient of the parameter", parameter.grad, parameter_64.grad, 1e-5)


def zigzag_covers_everything(group: dist.ProcessGroup) -> None:
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    lengths = [2 * size, 0, 4 * size]
    mine = zigzag_indices(lengths, size, rank)
    parts = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(parts, mine, group=group)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(sum(lengths))), f"not a partition: {parts}"


def global_sums(group: dist.ProcessGroup) -> None:
    """Losses [1, 1, 1] on rank 0 and [9] on rank 1: the mean is 3, not 5."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    mine = {0: [1.0, 1.0, 1.0], 1: [9.0]}.get(rank, []) if size > 1 else [1.0, 1.0, 1.0, 9.0]
    losses = torch.tensor(mine)
    count = torch.tensor(len(mine))
    values = {"loss": losses.sum(), "count": count, "big": torch.tensor(2.0**53 if rank == 0 else 0.0).double()}
    order = sorted(values, reverse=bool(rank % 2))  # insertion order must not matter
    total = reduce_sums({key: values[key] for key in order}, group)
    assert total == {"loss": 12.0, "count": 4.0, "big": 2.0**53}, f"sums are {total}"
    assert total["loss"] / total["count"] == 3.0
    fine = reduce_sums({"fine": torch.tensor(1.0 if rank else 2.0**24)}, group)
    assert fine == {"fine": 2.0**24 + size - 1}, f"rounded to float32 on the way: {fine}"


def groups_stay_apart(group: dist.ProcessGroup) -> None:
    """Each rank a group of its own: nothing of the others gets in."""
    rank = dist.get_rank(group)
    mine = [dist.new_group([other]) for other in range(dist.get_world_size(group))][rank]
    values = {"x": torch.tensor(rank + 1.0)}
    assert reduce_sums(values, mine) == reduce_max(values, mine) == {"x": rank + 1.0}
    assert sequence_sum(values["x"][None], torch.zeros(1, dtype=torch.long), 1, cp_group=mine).item() == rank + 1


def global_max(group: dist.ProcessGroup) -> None:
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    bad = torch.tensor(float("nan") if rank == size - 1 else 0.0)
    largest = reduce_max({"rank": torch.tensor(rank), "minus": torch.tensor(-1.0 - rank), "bad": bad}, group)
    assert largest == {"rank": size - 1.0, "minus": -1.0, "bad": float("inf")}, f"maxima are {largest}"


def cases() -> dict[str, Callable[[dist.ProcessGroup], None]]:
    nan, huge = float("nan"), float("inf")
    named: dict[str, Callable[[dist.ProcessGroup], None]] = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        label = str(dtype).removeprefix("torch.")
        named[f"linear {label}"] = partial(linear_case, dtype=dtype)
        named[f"linear {label} entropy"] = partial(linear_case, dtype=dtype, with_entropy=True)
        named[f"logits {label}"] = partial(logits_case, dtype=dtype)
        named[f"logits {label} entropy"] = partial(logits_case, dtype=dtype, with_entropy=True)
    for temperature in (0.5, 2.0):
        named[f"linear temperature {temperature}"] = partial(linear_case, temperature=temperature, with_entropy=True)
        named[f"logits temperature {temperature}"] = partial(logits_case, temperature=temperature, with_entropy=True)
    for chunk in (1, 7, 24):
        named[f"linear chunk {chunk}"] = partial(linear_case, chunk_size=chunk, with_entropy=True)
        named[f"logits chunk {chunk}"] = partial(logits_case, chunk_size=chunk, with_entropy=True)
    for padding in (nan, huge, -huge):
        named[f"linear padding {padding}"] = partial(linear_case, padding=padding, with_entropy=True)
        named[f"logits padding {padding}"] = partial(logits_case, padding=padding, with_entropy=True)
    named["linear whole shards of padding"] = partial(linear_case, vocab_size=13, padding=nan, with_entropy=True)
    named["logits whole shards of padding"] = partial(logits_case, vocab_size=13, padding=nan, with_entropy=True)
    named["linear no padding"] = partial(linear_case, vocab_size=112)
    named["logits no padding"] = partial(logits_case, vocab_size=112)
    named["linear small tiles"] = small_tiles_case
    for dtype in (torch.float32, torch.bfloat16):
        named[f"linear sequence_parallel {dtype}"] = partial(
            linear_case, dtype=dtype, sequence_parallel=True, chunk_size=7, with_entropy=True
        )
    named["linear no tokens"] = partial(linear_case, tokens=0, with_entropy=True)
    named["linear no tokens sequence_parallel"] = partial(linear_case, tokens=0, sequence_parallel=True)
    named["logits no tokens"] = partial(logits_case, shape=(0, 3), with_entropy=True)
    for case in (
        square_of_split_sum,
        packed_sequences,
        zigzag_covers_everything,
        global_sums,
        groups_stay_apart,
        global_max,
    ):
        named[case.__name__] = case
    return named | sppo_cases.cases()


def main(path: str) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=90))
    torch.set_num_threads(1)
    if os.environ.get("SPPO_TEST_KERNELS") == "triton":
        kernels._runs_natively = lambda device, dtype: dtype == torch.float32
    group, results = dist.group.WORLD, {}
    for name, case in cases().items():
        failure = None
        try:
            case(group)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            failure = f"rank {dist.get_rank()}: {type(error).__name__}: {error} ({where.name}, line {where.lineno})"
        failures: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(failures, failure)
        results[name] = [failure for failure in failures if failure]
    if dist.get_rank() == 0:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
    sppo_cases.layout_groups.cache_clear()  # a group that outlives its backend aborts the process
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
