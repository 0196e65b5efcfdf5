"""The regression loss against worked numbers, independent definitions and derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_megatron import compute_sppo_loss
from sppo_megatron.objective import (
    regression_target,
    resolve_eta,
    sequence_log_ratio,
    sequence_weights,
    sppo_loss,
)

OLD = [[-1.2, -0.4, -2.5], [-0.5, -0.6, 0.0]]
MASK = [[1, 1, 1], [1, 1, 0]]
SEEDS = st.integers(0, 2**31 - 1)
FAST = settings(max_examples=30, deadline=None)


def worked(garbage: float = -9.9, dtype=torch.float32):
    lp = torch.tensor([[-1, -0.5, -2], [-0.3, -0.7, garbage]], dtype=dtype, requires_grad=True)
    return lp, torch.tensor(OLD, dtype=dtype), torch.tensor([1.0, 0.0], dtype=dtype), torch.tensor(MASK)


def random_batch(seed: int, rows: int = 6, tokens: int = 5):
    g = torch.Generator().manual_seed(seed)
    lp = -3 * torch.rand(rows, tokens, generator=g, dtype=torch.float64)
    old = -3 * torch.rand(rows, tokens, generator=g, dtype=torch.float64)
    rewards = torch.rand(rows, generator=g, dtype=torch.float64)
    mask = torch.rand(rows, tokens, generator=g) < 0.6
    return lp.requires_grad_(), old, rewards, mask


def loop_loss(lp, old, rewards, mask, eta, mode):
    """The definition, one response and one token at a time."""
    terms = []
    for i in range(len(rewards)):
        tokens = [t for t in range(lp.shape[1]) if mask[i, t]]
        if tokens:
            s = sum(lp[i, t].item() - old[i, t].item() for t in tokens)
            loss = (s - eta * (float(rewards[i]) - 0.5)) ** 2
            terms.append(loss / len(tokens) if mode == "seq-mean-token-mean" else loss)
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("garbage", [-9.9, math.nan, -math.inf, math.inf])
@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.bool, torch.float32])
def test_worked_example(garbage, mask_dtype):
    lp, old, rewards, mask = worked(garbage)
    loss, s, delta = compute_sppo_loss(old, lp, rewards, mask.to(mask_dtype), 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.685, abs=1e-6)
    torch.testing.assert_close(s.detach(), torch.tensor([0.6, 0.1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(delta, torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(lp.grad, torch.tensor([[-0.4] * 3, [1.1, 1.1, 0.0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("mode", "value"),
    [("seq-mean-token-sum", 0.685), ("token-mean", 0.685), ("seq-mean-token-mean", 0.3291667)],
)
@pytest.mark.parametrize("empty_rows", [0, 1, 3])
def test_modes_and_empty_rows(mode, value, empty_rows):
    lp, old, rewards, mask = worked(dtype=torch.float64)
    lp = torch.cat([lp.detach(), torch.full((empty_rows, 3), math.nan)]).requires_grad_()
    old = torch.cat([old, torch.full((empty_rows, 3), math.inf)])
    rewards = torch.cat([rewards, torch.ones(empty_rows)])
    mask = torch.cat([mask, torch.zeros(empty_rows, 3, dtype=torch.long)])
    loss, _, _ = compute_sppo_loss(old, lp, rewards, mask, 2.0, mode)
    loss.backward()
    assert loss.item() == pytest.approx(value, abs=1e-7)
    scale = [1 / 3, 1 / 2] if mode == "seq-mean-token-mean" else [1, 1]
    expected = [[-0.4 * scale[0]] * 3, [1.1 * scale[1], 1.1 * scale[1], 0]] + [[0.0] * 3] * empty_rows
    torch.testing.assert_close(lp.grad, torch.tensor(expected, dtype=torch.float64))


@FAST
@given(seed=SEEDS, eta=st.floats(0.01, 1000), mode=st.sampled_from(["seq-mean-token-sum", "seq-mean-token-mean"]))
def test_equals_the_definition(seed, eta, mode):
    lp, old, rewards, mask = random_batch(seed)
    loss, _, _ = compute_sppo_loss(old, lp, rewards, mask, eta, mode)
    assert loss.item() == pytest.approx(loop_loss(lp, old, rewards, mask, eta, mode), rel=1e-10)


@FAST
@given(seed=SEEDS)
def test_row_order_and_masked_values_do_not_matter(seed):
    lp, old, rewards, mask = random_batch(seed)
    reference, _, _ = compute_sppo_loss(old, lp, rewards, mask)
    (gradient,) = torch.autograd.grad(reference, lp)
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(seed))
    bad_lp = torch.where(mask, lp.detach(), math.nan).requires_grad_()
    bad_old = torch.where(mask, old, -math.inf)
    loss, _, _ = compute_sppo_loss(bad_old[order], bad_lp[order], rewards[order], mask[order])
    loss.backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-12)
    torch.testing.assert_close(bad_lp.grad, gradient)


@FAST
@given(seed=SEEDS, cut=st.integers(0, 6), loss_scale=st.sampled_from(["sppo", "kimi"]))
def test_micro_batches_add_up_to_the_batch(seed, cut, loss_scale):
    lp, old, rewards, mask = random_batch(seed)
    target = regression_target(rewards, torch.full_like(rewards, 0.5), 2.0)

    def sums(rows):
        s, length = sequence_log_ratio(lp[rows], old[rows], mask[rows])
        return sppo_loss(
            s,
            target[rows],
            valid=length > 0,
            weight=sequence_weights(length, "length"),
            loss_scale=loss_scale,
            eta=2.0,
        )

    whole, first, second = sums(slice(None)), sums(slice(0, cut)), sums(slice(cut, None))
    torch.testing.assert_close(first.loss_sum + second.loss_sum, whole.loss_sum)
    assert first.weight_sum + second.weight_sum == whole.weight_sum == mask.any(dim=1).sum()
    for name, value in whole.metrics.items():
        torch.testing.assert_close(first.metrics[name] + second.metrics[name], value)
        assert not value.requires_grad
    (gradient,) = torch.autograd.grad(whole.loss_sum, lp, retain_graph=True)
    (parts,) = torch.autograd.grad(first.loss_sum + second.loss_sum, lp)
    torch.testing.assert_close(parts, gradient)


def test_global_mean_is_not_a_mean_of_means():
    first = sppo_loss(torch.ones(3), torch.zeros(3))
    second = sppo_loss(torch.full((1,), 3.0), torch.zeros(1))
    assert (first.loss_sum + second.loss_sum) / (first.weight_sum + second.weight_sum) == 3


def test_weight_scales_the_loss_and_not_the_count():
    sums = sppo_loss(torch.tensor([1.0, 2.0]), torch.zeros(2), weight=torch.tensor([0.5, 0.25]))
    assert (sums.loss_sum, sums.weight_sum) == (1.5, 2)
    s = torch.tensor([1.0, math.nan], requires_grad=True)
    empty = sppo_loss(
        s,
        torch.tensor([0.0, math.nan]),
        valid=torch.tensor([1, 0]),
        weight=torch.tensor([2.0, math.nan]),
    )
    assert (empty.loss_sum, empty.weight_sum, empty.metrics["invalid_sequences"]) == (2, 1, 1)
    empty.loss_sum.backward()
    assert s.grad.tolist() == [4, 0]


def test_square_of_the_whole_sum():
    parts = torch.tensor([0.4, 0.2])
    assert sppo_loss(parts.sum()[None], torch.ones(1)).loss_sum.item() == pytest.approx(0.16)
    assert sppo_loss(parts, torch.ones(2)).loss_sum.item() == pytest.approx(1.0)


def test_all_rows_invalid_is_a_connected_zero():
    lp = torch.full((2, 3), math.nan, requires_grad=True)
    loss, _, _ = compute_sppo_loss(torch.zeros(2, 3), lp, torch.ones(2), torch.zeros(2, 3))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(lp.grad, torch.zeros(2, 3))
    s = torch.ones(2, requires_grad=True)
    sums = sppo_loss(s, torch.zeros(2), valid=torch.zeros(2))
    assert sums.loss_sum.requires_grad
    assert (sums.loss_sum.item(), sums.weight_sum.item(), sums.metrics["invalid_sequences"].item()) == (0, 0, 2)
    assert sppo_loss(torch.ones(0), torch.ones(0)).weight_sum == 0


def test_kimi_scale_has_kimis_gradient():
    # Kimi's objective to maximise per response: (r − b)·s − (τ/2)·s².
    tau, advantage = 0.25, torch.tensor([0.3, -0.8], dtype=torch.float64)
    s = torch.tensor([0.6, 0.1], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(sppo_loss(s, advantage / tau, loss_scale="kimi", eta=1 / tau).loss_sum, s)
    torch.testing.assert_close(gradient, -(advantage - tau * s.detach()))


def test_kimi_loss_is_tau_squared_times_sppo():
    tau = 0.3
    s = torch.tensor([0.6, 0.1, -2.0], dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.0, 0.4], dtype=torch.float64)
    baseline = torch.tensor([0.2, 0.7, 0.7], dtype=torch.float64)
    kimi = ((rewards - baseline - tau * s) ** 2).sum()
    loss = sppo_loss(s, regression_target(rewards, baseline, resolve_eta(None, tau))).loss_sum
    torch.testing.assert_close(tau**2 * loss, kimi)


@FAST
@given(seed=SEEDS)
def test_on_policy_gradient_is_reinforce_times_two(seed):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, generator=g, dtype=torch.float64, requires_grad=True)
    arms = torch.randint(4, (7,), generator=g)
    target = torch.randn(7, generator=g, dtype=torch.float64)
    log_probs = logits.log_softmax(0)[arms]
    s, _ = sequence_log_ratio(log_probs[:, None], log_probs.detach()[:, None], torch.ones(7, 1))
    assert torch.equal(s, torch.zeros(7, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(sppo_loss(s, target).loss_sum, logits)
    # ∇ log softmax_a = e_a − π, written out.
    pi = logits.detach().softmax(0)
    score = torch.eye(4, dtype=torch.float64)[arms] - pi
    torch.testing.assert_close(gradient, -2 * (target[:, None] * score).sum(dim=0))


def test_gradcheck():
    lp, old, rewards, mask = random_batch(3)
    for mode in ("seq-mean-token-sum", "seq-mean-token-mean", "token-mean"):
        assert torch.autograd.gradcheck(lambda x, m=mode: compute_sppo_loss(old, x, rewards, mask, 3.0, m)[0], lp)


def test_two_pass_form_has_the_same_gradient():
    s = torch.tensor([0.6, 0.1], requires_grad=True)
    delta = torch.tensor([1.0, -1.0])
    (gradient,) = torch.autograd.grad(sppo_loss(s, delta).loss_sum, s)
    (two_pass,) = torch.autograd.grad((2 * (s - delta).detach() * s).sum(), s)
    torch.testing.assert_close(gradient, two_pass)


def test_nothing_but_log_probs_gets_a_gradient():
    lp, old, rewards, mask = worked()
    old.requires_grad_()
    rewards.requires_grad_()
    loss, _, delta = compute_sppo_loss(old, lp, rewards, mask)
    assert not delta.requires_grad
    loss.backward()
    assert old.grad is None and rewards.grad is None and lp.grad is not None
    target = regression_target(rewards, rewards, 1.0)
    assert not target.requires_grad
    s, target, weight = (torch.ones(2, requires_grad=True) for _ in range(3))
    sppo_loss(s, target * 2, weight=weight * 2).loss_sum.backward()
    assert target.grad is None and weight.grad is None and s.grad is not None


def test_inputs_are_not_edited():
    lp, old, rewards, mask = worked(math.nan)
    kept = [x.detach().clone() for x in (lp, old, rewards, mask)]
    compute_sppo_loss(old, lp, rewards, mask)[0].backward()
    for before, after in zip(kept, (lp, old, rewards, mask), strict=True):
        assert torch.equal(torch.nan_to_num(before), torch.nan_to_num(after.detach()))


def test_half_precision_is_summed_in_fp32():
    tokens = 4096
    old = torch.full((1, tokens), -1.0, dtype=torch.bfloat16)
    lp = torch.full((1, tokens), -1.0078125, dtype=torch.bfloat16)  # one step below, exact in bf16
    s, length = sequence_log_ratio(lp, old, torch.ones(1, tokens))
    assert (s.dtype, s.item(), length.item()) == (torch.float32, -32.0, tokens)
    loss, _, delta = compute_sppo_loss(old, lp, torch.ones(1, dtype=torch.bfloat16), torch.ones(1, tokens))
    assert loss.dtype == delta.dtype == torch.float32 and loss.item() == 32.5**2


def test_small_difference_of_large_sums():
    # Sums of about 4e5 nats; summing each before subtracting would leave a multiple of 1/32, some of them off.
    g = torch.Generator().manual_seed(0)
    old = -100 * torch.rand(1, 8192, generator=g)
    lp = old + 0.001 * torch.rand(1, 8192, generator=g)
    s, _ = sequence_log_ratio(lp, old, torch.ones(1, 8192))
    assert s.item() == pytest.approx(float((lp.double() - old.double()).sum()), abs=1e-4)


def test_target_clip_and_dtype():
    target = regression_target(torch.tensor([1.0, 0.5, 0.0]), torch.full((3,), 0.5), 1000.0, clip=10.0)
    assert target.tolist() == [10, 0, -10]
    half = torch.ones(2, dtype=torch.float16)
    assert regression_target(half, half, 1.0).dtype == torch.float32
    assert regression_target(half.double(), half.double(), 1.0).dtype == torch.float64


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("none", [1, 1, 1]),
        ("seq-mean-token-sum", [1, 1, 1]),
        ("token-mean", [1, 1, 1]),
        ("length", [0.25, 0.5, 1]),
        ("seq-mean-token-mean", [0.25, 0.5, 1]),
        ("max_length", [0.125] * 3),
    ],
)
def test_sequence_weights(mode, expected):
    assert sequence_weights(torch.tensor([4, 2, 0]), mode, max_length=8).tolist() == expected


def test_resolve_eta():
    assert resolve_eta(2.0, None) == 2.0
    assert resolve_eta(None, 0.01) == pytest.approx(100)
    for eta, tau in [(None, None), (1.0, 1.0), (0.0, None), (None, -1.0), (math.nan, None), (None, math.inf)]:
        with pytest.raises(ValueError, match=r"eta|tau"):
            resolve_eta(eta, tau)


def call(**changes):
    lp, old, rewards, mask = worked()
    given = {"old_log_prob": old, "log_prob": lp, "rewards": rewards, "response_mask": mask}
    return compute_sppo_loss(**(given | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": torch.ones(2, 1)}, r"rewards: shape \[2, 1\]"),
        ({"rewards": torch.ones(3)}, "rewards: shape"),
        ({"rewards": torch.tensor([1.0, math.nan])}, "rewards: 1 non-finite"),
        ({"old_log_prob": torch.zeros(2, 1)}, "old_log_prob: shape"),
        ({"old_log_prob": torch.full((2, 3), -math.inf)}, "old_log_probs: 5 non-finite"),
        ({"log_prob": torch.full((2, 3), math.nan)}, "log_probs: 5 non-finite"),
        ({"log_prob": torch.zeros(6)}, r"log_prob: expected shape \[B, T\]"),
        ({"response_mask": torch.ones(2, 1)}, "response_mask: shape"),
        ({"response_mask": torch.full((2, 3), 0.5)}, "response_mask: holds values other than 0 and 1"),
        ({"eta": 0.0}, "eta: must be"),
        ({"eta": -1.0}, "eta: must be"),
        ({"eta": None}, "eta: must be"),
        ({"loss_agg_mode": "mean"}, "seq-mean-token-sum, seq-mean-token-mean, token-mean"),
    ],
)
def test_compute_sppo_loss_raises(changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (torch.zeros(2, 1), {}, "target: shape"),
        (torch.tensor([0.0, math.inf]), {}, "target: 1 non-finite"),
        (torch.zeros(2), {"loss_scale": "mean"}, "loss_scale: .* sppo, kimi"),
        (torch.zeros(2), {"loss_scale": "kimi"}, "eta: missing"),
        (torch.zeros(2), {"loss_scale": "kimi", "eta": 0.0}, "eta: must be"),
        (torch.zeros(2), {"valid": torch.ones(2, 1)}, "valid: shape"),
        (torch.zeros(2), {"valid": torch.tensor([1.0, 0.5])}, "valid: holds values other than 0 and 1"),
        (torch.zeros(2), {"weight": torch.ones(1)}, "weight: shape"),
        (torch.zeros(2), {"weight": torch.tensor([1.0, -1.0])}, "weight: 1 negative"),
        (torch.zeros(2), {"weight": torch.tensor([1.0, math.nan])}, "weight: 1 non-finite"),
    ],
)
def test_sppo_loss_raises(target, options, message):
    with pytest.raises(ValueError, match=message):
        sppo_loss(torch.zeros(2), target, **options)


def test_other_raises():
    with pytest.raises(ValueError, match="log_ratio: 1 non-finite"):
        sppo_loss(torch.tensor([math.nan]), torch.zeros(1))
    with pytest.raises(ValueError, match="old_log_probs: shape"):
        sequence_log_ratio(torch.zeros(2, 3), torch.zeros(2, 1), torch.ones(2, 3))
    with pytest.raises(ValueError, match="baseline: shape"):
        regression_target(torch.zeros(2), torch.zeros(2, 1), 1.0)
    with pytest.raises(ValueError, match="clip: must be"):
        regression_target(torch.zeros(2), torch.zeros(2), 1.0, clip=0.0)
    with pytest.raises(ValueError, match="eta: must be"):
        regression_target(torch.zeros(2), torch.zeros(2), -1.0)
    with pytest.raises(ValueError, match="rewards: 1 non-finite"):
        regression_target(torch.tensor([math.nan]), torch.zeros(1), 1.0)
    with pytest.raises(ValueError, match="baseline: 1 non-finite"):
        regression_target(torch.zeros(1), torch.tensor([math.nan]), 1.0)
    with pytest.raises(ValueError, match="max_length: missing"):
        sequence_weights(torch.ones(2), "max_length")
    with pytest.raises(ValueError, match=r"mode: .*none, length, max_length"):
        sequence_weights(torch.ones(2), "tokens")


def test_validate_false_skips_the_value_checks():
    s = sppo_loss(torch.tensor([math.nan]), torch.zeros(1), validate=False)
    assert math.isnan(s.loss_sum.item())
    lp = torch.full((1, 1), math.nan)
    assert math.isnan(sequence_log_ratio(lp, lp, torch.ones(1, 1), validate=False)[0].item())


def test_a_response_without_columns():
    loss, s, _ = compute_sppo_loss(torch.zeros(2, 0), torch.zeros(2, 0), torch.ones(2), torch.zeros(2, 0))
    assert loss == 0 and s.tolist() == [0, 0]
