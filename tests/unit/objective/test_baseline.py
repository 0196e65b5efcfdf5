"""Group baselines against explicit loops, and the properties that make them baselines."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_megatron.objective import BASELINES, group_baseline, regression_target, sequence_log_ratio, sppo_loss

FAST = settings(max_examples=40, deadline=None)
GROUP_KINDS = [kind for kind in BASELINES if kind != "constant"]


@st.composite
def groups(draw, smallest=2):
    """Rewards and unordered, non-contiguous ids of groups of different sizes."""
    sizes = draw(st.lists(st.integers(smallest, 5), min_size=1, max_size=4))
    names = draw(st.lists(st.integers(-(10**12), 10**12), min_size=len(sizes), max_size=len(sizes), unique=True))
    ids = [name for name, size in zip(names, sizes, strict=True) for _ in range(size)]
    ids = draw(st.permutations(ids))
    rewards = draw(st.lists(st.floats(-2, 2, allow_subnormal=False), min_size=len(ids), max_size=len(ids)))
    return torch.tensor(rewards, dtype=torch.float64), torch.tensor(ids)


def loop_baseline(rewards, ids, kind, tau):
    """The definition, one row at a time, in Python floats and with the maximum taken out."""
    result = []
    for i in range(len(rewards)):
        rows = [j for j in range(len(rewards)) if ids[j] == ids[i] and not (kind.startswith("loo") and j == i)]
        values = [float(rewards[j]) for j in rows]
        if kind == "constant":
            result.append(0.5)
        elif kind.endswith("mean"):
            result.append(math.fsum(values) / len(values))
        else:
            top = max(values)
            result.append(top + tau * math.log(math.fsum(math.exp((v - top) / tau) for v in values) / len(values)))
    return torch.tensor(result, dtype=torch.float64)


@FAST
@given(batch=groups(), kind=st.sampled_from(BASELINES), tau=st.sampled_from([1e-3, 0.01, 0.3, 1.0, 50.0]))
def test_equals_the_loop(batch, kind, tau):
    rewards, ids = batch
    torch.testing.assert_close(
        group_baseline(rewards, ids, kind, tau), loop_baseline(rewards, ids, kind, tau), atol=1e-12, rtol=1e-12
    )


@FAST
@given(batch=groups(), kind=st.sampled_from(BASELINES), seed=st.integers(0, 10**6))
def test_row_order_and_group_names_do_not_matter(batch, kind, seed):
    rewards, ids = batch
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    baseline = group_baseline(rewards, ids, kind, 0.1)
    torch.testing.assert_close(group_baseline(rewards[order], -3 * ids[order], kind, 0.1), baseline[order])


@FAST
@given(batch=groups(), kind=st.sampled_from(GROUP_KINDS), shift=st.floats(-3, 3))
def test_adding_a_constant_leaves_the_target(batch, kind, shift):
    rewards, ids = batch
    per_group = shift * (ids % 7).double()  # a different constant in each group
    target = regression_target(rewards, group_baseline(rewards, ids, kind, 0.1), 10.0)
    moved = regression_target(rewards + per_group, group_baseline(rewards + per_group, ids, kind, 0.1), 10.0)
    torch.testing.assert_close(moved, target, atol=1e-9, rtol=1e-9)


@FAST
@given(batch=groups())
def test_baselines_of_one_group_ignore_the_others(batch):
    rewards, ids = batch
    first = ids == ids[0]
    for kind in BASELINES:
        alone = group_baseline(rewards[first], ids[first], kind, 0.1)
        torch.testing.assert_close(group_baseline(rewards, ids, kind, 0.1)[first], alone, rtol=1e-12, atol=1e-12)


def test_log_partition_between_mean_and_max():
    rewards, ids = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    assert group_baseline(rewards, ids, "log_partition", 1e6)[0].item() == pytest.approx(
        rewards.mean().item(), abs=1e-6
    )
    assert group_baseline(rewards, ids, "log_partition", 1e-4)[0].item() == pytest.approx(1.0, abs=2e-4)


def test_leave_one_out_log_partition_at_small_tau():
    # exp(1/τ) of the best row is e^1000 times the others: subtracting it from the sum would leave nothing.
    rewards, ids = torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3, dtype=torch.long)
    baseline = group_baseline(rewards, ids, "loo_log_partition", 1e-3)
    torch.testing.assert_close(baseline, torch.tensor([0.0, 1 - 1e-3 * math.log(2), 1 - 1e-3 * math.log(2)]))


@pytest.mark.parametrize("kind", GROUP_KINDS)
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_a_degenerate_group_has_an_exactly_zero_gradient(kind, reward, size):
    rewards, ids = torch.full((size,), reward), torch.zeros(size, dtype=torch.long)
    target = regression_target(rewards, group_baseline(rewards, ids, kind, 0.001), 1000.0)
    log_probs = torch.randn(size, 4).requires_grad_()
    s, _ = sequence_log_ratio(log_probs, log_probs.detach(), torch.ones(size, 4))
    sppo_loss(s, target).loss_sum.backward()
    assert torch.equal(log_probs.grad, torch.zeros(size, 4))


def test_the_constant_baseline_moves_a_degenerate_group():
    rewards = torch.ones(3)
    assert regression_target(rewards, group_baseline(rewards, None), 2.0).tolist() == [1, 1, 1]


def test_never_batch_wide():
    rewards, ids = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([7, 7, 2, 2])
    rewards[2:] += 10
    assert group_baseline(rewards, ids, "mean").tolist() == [0.5, 0.5, 10.5, 10.5]


def test_dtypes_and_detachment():
    ids = torch.zeros(2, dtype=torch.int32)
    for dtype, expected in [(torch.bfloat16, torch.float32), (torch.int64, torch.float32), (torch.float64,) * 2]:
        assert group_baseline(torch.tensor([0, 1], dtype=dtype), ids, "mean").dtype == expected
    rewards = torch.tensor([0.0, 1.0], requires_grad=True)
    for kind in BASELINES:
        assert not group_baseline(rewards, ids, kind, 1.0).requires_grad
    assert group_baseline(torch.ones(0), torch.ones(0, dtype=torch.long), "mean").shape == (0,)


ONES, IDS = torch.ones(2), torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("rewards", "ids", "kind", "options", "message"),
    [
        (ONES, IDS, "median", {}, "constant, mean, loo_mean, log_partition, loo_log_partition"),
        (torch.ones(2, 1), IDS, "mean", {}, r"rewards: expected shape \[B\]"),
        (ONES, IDS[:, None], "mean", {}, "group_ids: shape"),
        (ONES, None, "mean", {}, "group_ids: missing"),
        (ONES, IDS.float(), "mean", {}, "group_ids: must be integers"),
        (torch.tensor([1.0, math.nan]), IDS, "mean", {}, "rewards: 1 non-finite"),
        (ONES, IDS, "log_partition", {}, "tau: missing"),
        (ONES, IDS, "loo_log_partition", {"tau": 0.0}, "tau: must be"),
        (ONES, torch.arange(2), "loo_mean", {}, "at least 2 responses"),
        (ONES, torch.arange(2), "loo_log_partition", {"tau": 1.0}, "at least 2 responses"),
        (ONES, IDS, "mean", {"group_size": 4}, "split across ranks"),
        (ONES, IDS, "constant", {"group_size": 4}, "split across ranks"),
    ],
)
def test_raises(rewards, ids, kind, options, message):
    with pytest.raises(ValueError, match=message):
        group_baseline(rewards, ids, kind, **options)


@pytest.mark.parametrize("kind", BASELINES)
def test_whole_groups_of_the_stated_size(kind):
    rewards, ids = torch.tensor([0.0, 1.0, 0.5, 0.2]), torch.tensor([3, 1, 1, 3])
    stated = group_baseline(rewards, ids, kind, 0.1, group_size=2)
    assert torch.equal(stated, group_baseline(rewards, ids, kind, 0.1))


@pytest.mark.parametrize("kind", ["mean", "log_partition"])
def test_a_group_of_one(kind):
    assert group_baseline(torch.tensor([0.3, 0.9]), torch.arange(2), kind, 0.1).tolist() == pytest.approx([0.3, 0.9])
