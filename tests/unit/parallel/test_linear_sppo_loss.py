"""The loss from hidden states in one process: the formula, what is computed and kept, and what is raised."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sppo_megatron.objective import sppo_loss
from sppo_megatron.parallel import linear_sppo_loss, logit_tiles, sequence_sum, vocab_parallel_linear_log_probs
from sppo_megatron.parallel.sequence import cut_groups, order_by_sequence
from tests.unit.parallel.mixed_products import emulate_mixed_products


def inputs(lengths, width=5, columns=13, vocab_size=11, dtype=torch.float64, seed=0):
    """(hidden, weight) and the other positional arguments; tokens of the sequences are mixed."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    ids = ids[torch.randperm(len(ids), generator=generator)]
    hidden = torch.randn(len(ids), width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(columns, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab_size, (len(ids),), generator=generator)
    old = -2 - torch.rand(len(ids), generator=generator, dtype=torch.float64)
    delta, coefficient = torch.rand(2, len(lengths), generator=generator, dtype=torch.float64)
    return hidden, weight, (targets, old, ids, delta, coefficient)


def plain(hidden, weight, rest, vocab_size=11, temperature=1.0):
    """(loss, s) in float64, one sequence at a time; and the gradients of 3 · loss."""
    targets, old, ids, delta, coefficient = rest
    hidden, weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    log_probs = torch.log_softmax(hidden @ weight[:vocab_size].t() / temperature, -1)
    log_probs = log_probs.gather(1, targets[:, None])[:, 0]
    s = torch.stack([(log_probs - old)[ids == k].sum() for k in range(len(delta))])
    loss = (coefficient * (s - delta) ** 2).sum()
    (3 * loss).backward()
    return loss.detach(), s.detach(), log_probs.detach(), hidden.grad, weight.grad


def test_worked_numbers():
    """s = [.6, .1], δ = [1, −1], both coefficients ½: the loss is .685 and tokens' slopes are −.4 and 1.1."""
    log_probs = torch.tensor([-1.0, -0.5, -2.0, -0.3, -0.7])
    hidden = torch.stack([log_probs, torch.log1p(-log_probs.exp())], 1).requires_grad_()  # logits, normalised
    old = torch.tensor([-1.2, -0.4, -2.5, -0.5, -0.6])
    ids = torch.tensor([0, 0, 0, 1, 1])
    result = linear_sppo_loss(
        hidden,
        torch.eye(2),
        torch.zeros(5, dtype=torch.long),
        old,
        ids,
        torch.tensor([1.0, -1.0]),
        torch.tensor([0.5, 0.5]),
        lengths=[3, 2],
    )
    assert result.loss_sum.item() == pytest.approx(0.685, abs=1e-6)
    assert result.log_ratio.tolist() == pytest.approx([0.6, 0.1], abs=1e-6)
    assert result.log_probs.tolist() == pytest.approx(log_probs.tolist(), abs=1e-6)
    result.loss_sum.backward()
    slope = torch.tensor([-0.4, -0.4, -0.4, 1.1, 1.1])
    torch.testing.assert_close(hidden.grad[:, 0], slope * (1 - log_probs.exp()))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("chunk_size", [1, 4, None])
@pytest.mark.parametrize("budget", [1, 500, 10**9])
def test_equals_the_definition_in_float64(temperature, chunk_size, budget):
    hidden, weight, rest = inputs([4, 0, 3, 2])
    options = {"vocab_size": 11, "temperature": temperature, "chunk_size": chunk_size, "logits_budget": budget}
    result = linear_sppo_loss(hidden, weight, *rest, lengths=[4, 0, 3, 2], **options)
    (3 * result.loss_sum).backward()
    for actual, expected in zip(
        (*result, hidden.grad, weight.grad), plain(hidden, weight, rest, temperature=temperature), strict=True
    ):
        assert actual.dtype == torch.float64
        torch.testing.assert_close(actual.detach(), expected, atol=1e-11, rtol=1e-11)


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    columns=st.integers(1, 300),
    padding=st.integers(0, 9),
    tile=st.tuples(st.integers(1, 25), st.integers(1, 310)),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    budget=st.integers(1, 50_000),
)
def test_any_shape_tile_and_budget_agree_with_the_definition(lengths, columns, padding, tile, temperature, budget):
    hidden, weight, rest = inputs(lengths, 4, columns + padding, columns, torch.float32)
    with torch.no_grad():
        weight.mul_(0.5)[columns:] = float("nan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logit_tiles, "choose_tiles", lambda *_: tile)
        result = linear_sppo_loss(
            hidden,
            weight,
            *rest,
            lengths=lengths,
            vocab_size=columns,
            temperature=temperature,
            logits_budget=budget,
        )
    assert all(tensor.dtype == torch.float32 for tensor in result)
    assert not result.log_ratio.requires_grad and not result.log_probs.requires_grad
    (3 * result.loss_sum).backward()
    loss, s, log_probs, hidden_grad, weight_grad = plain(hidden, weight, rest, columns, temperature)
    for actual, expected in zip(result, (loss, s, log_probs), strict=True):
        torch.testing.assert_close(actual.double(), expected, atol=1e-4, rtol=1e-5)
    # A likely target's p − 1 is rounded at 1 and multiplied by its sequence's slope: errors scale with the largest.
    for actual, expected in ((hidden.grad, hidden_grad), (weight.grad[:columns], weight_grad[:columns])):
        scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
        torch.testing.assert_close(actual.double(), expected, atol=2e-5 * scale, rtol=0)
    assert (weight.grad[columns:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("budget", [1, 10**9])
@pytest.mark.parametrize("loss_scale", ["sppo", "kimi"])
def test_equals_log_probs_then_sums_then_the_square(dtype, budget, loss_scale):
    """With sequence weights, an invalid sequence and Kimi's scale, as the objective defines them."""
    lengths, eta = [40, 0, 7, 80], 3.0
    hidden, weight, rest = inputs(lengths, 32, 600, 600, dtype)
    targets, old, ids, delta, sequence_weight = (x.float() if x.is_floating_point() else x for x in rest)
    with torch.no_grad():
        weight.mul_(0.25)
    valid = torch.tensor(lengths) > 0
    log_probs = vocab_parallel_linear_log_probs(hidden, weight, targets, temperature=0.7)
    s = sequence_sum(log_probs - old, ids, len(lengths))
    expected = sppo_loss(s, delta, valid=valid, weight=sequence_weight, loss_scale=loss_scale, eta=eta).loss_sum
    expected.backward()
    gradients, hidden.grad, weight.grad = (hidden.grad, weight.grad), None, None

    coefficient = sequence_weight * valid / (2 * eta if loss_scale == "kimi" else 1)
    actual = linear_sppo_loss(
        hidden,
        weight,
        targets,
        old,
        ids,
        delta,
        coefficient,
        lengths=lengths,
        temperature=0.7,
        logits_budget=budget,
    )
    actual.loss_sum.backward()
    torch.testing.assert_close(actual.loss_sum, expected.detach(), rtol=2e-6, atol=0)
    torch.testing.assert_close(actual.log_ratio, s.detach(), rtol=0, atol=2e-5)
    torch.testing.assert_close(actual.log_probs, log_probs.detach(), rtol=0, atol=2e-6)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    for tensor, gradient in zip((hidden, weight), gradients, strict=True):
        assert tensor.grad.dtype == dtype
        error = (tensor.grad - gradient).double().abs().max() / gradient.double().abs().max()
        assert float(error) <= tolerance


class Products(TorchDispatchMode):
    """Multiplications of all matrix products, and bytes of the largest tensor that any operation returned."""

    flops = largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if "mm" in function.__name__:
            a, b = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.dim() == 2][-2:]
            self.flops += a.shape[0] * a.shape[1] * b.shape[1]
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize(("budget", "products"), [(10**9, 3), (200 * 640 * 4, 3), (1, 4)])
def test_every_logit_is_computed_once_within_the_budget(budget, products):
    lengths, width, vocabulary = [100, 90, 50, 150], 8, 640
    hidden, weight, rest = inputs(lengths, width, vocabulary, vocabulary, torch.float32)
    with Products() as counted:
        linear_sppo_loss(hidden, weight, *rest, lengths=lengths, logits_budget=budget).loss_sum.backward()
    assert counted.flops == products * sum(lengths) * width * vocabulary
    largest_sequence = max(lengths) * vocabulary * 4
    assert counted.largest <= max(budget, largest_sequence)
    if budget == 10**9:
        assert counted.largest == sum(lengths) * vocabulary * 4, "nothing was kept"


@pytest.mark.parametrize("budget", [10**9, 1])
def test_without_gradients_nothing_is_kept_and_one_product_is_made(budget):
    hidden, weight, rest = inputs([100, 200], 8, 640, 640, torch.float32)
    expected = linear_sppo_loss(hidden, weight, *rest, lengths=[100, 200], logits_budget=budget, chunk_size=50)
    with torch.no_grad(), Products() as counted:
        result = linear_sppo_loss(hidden, weight, *rest, lengths=[100, 200], logits_budget=budget, chunk_size=50)
    assert counted.flops == 300 * 8 * 640 and result.loss_sum.grad_fn is None
    assert counted.largest == 50 * 640 * 4
    assert all(torch.equal(one, other) for one, other in zip(result, expected, strict=True))


def test_integers_of_any_size():
    hidden, weight, (targets, old, ids, *rest) = inputs([4, 3])
    expected = linear_sppo_loss(hidden, weight, targets, old, ids, *rest, lengths=[4, 3])
    actual = linear_sppo_loss(hidden, weight, targets.to(torch.int16), old, ids.to(torch.uint8), *rest, lengths=[4, 3])
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


@pytest.mark.parametrize("wanted", [0, 1])
def test_only_the_needed_gradient_is_computed(wanted):
    *both, rest = inputs([4, 3])
    linear_sppo_loss(*both, *rest, lengths=[4, 3]).loss_sum.backward()
    expected = both[wanted].grad
    both = [tensor.detach().requires_grad_(i == wanted) for i, tensor in enumerate(both)]
    with Products() as counted:
        linear_sppo_loss(*both, *rest, lengths=[4, 3]).loss_sum.backward()
    assert torch.equal(both[wanted].grad, expected) and both[1 - wanted].grad is None
    assert counted.flops == 2 * 7 * 5 * 13


def test_no_token_of_a_sequence_leaves_its_target():
    """s is 0 there; its square counts as its coefficient says."""
    hidden, weight, _ = inputs([0, 0])
    empty, delta = torch.zeros(0, dtype=torch.long), torch.tensor([2.0, 5.0])
    result = linear_sppo_loss(
        hidden, weight, empty, torch.zeros(0), empty, delta, torch.tensor([0.5, 0.0]), lengths=[0, 0]
    )
    assert result.loss_sum.item() == 2.0 and result.log_ratio.tolist() == [0.0, 0.0]
    result.loss_sum.backward()
    assert hidden.grad.shape == (0, 5) and not weight.grad.any()


def test_no_sequence_at_all_is_a_zero_with_a_graph():
    hidden, weight, _ = inputs([0])
    empty = torch.zeros(0, dtype=torch.long)
    result = linear_sppo_loss(hidden, weight, empty, empty.float(), empty, empty.float(), empty.float(), lengths=[])
    assert result.loss_sum.item() == 0.0 and result.loss_sum.requires_grad
    result.loss_sum.backward()
    assert not weight.grad.any()


def test_a_second_backward_pass_is_refused():
    hidden, weight, rest = inputs([4, 3])
    loss = linear_sppo_loss(hidden, weight, *rest, lengths=[4, 3]).loss_sum
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9, 0.0])
def test_low_precision_products(monkeypatch, dtype, scale):
    """The path of devices that multiply low-precision operands into float32, emulated: any coefficient is safe."""

    lengths = [9, 4, 7]
    hidden, weight, rest = inputs(lengths, 8, 40, 37, dtype)
    rest = (*rest[:4], rest[4] * scale)
    *_, hidden_grad, weight_grad = plain(hidden, weight, rest, 37, 2.0)
    emulate_mixed_products(monkeypatch)
    for budget in (10**9, 40 * 4 * 13, 1):
        hidden.grad = weight.grad = None
        arguments = {"lengths": lengths, "vocab_size": 37, "temperature": 2.0, "logits_budget": budget}
        (3 * linear_sppo_loss(hidden, weight, *rest, **arguments).loss_sum).backward()
        limits = torch.finfo(dtype).min, torch.finfo(dtype).max
        for one, other in ((hidden.grad, hidden_grad), (weight.grad, weight_grad)):
            error = (one.double().clamp(*limits) - other.clamp(*limits)).abs().max()
            assert float(error) <= 2e-2 * float(other.clamp(*limits).abs().max()) + torch.finfo(dtype).smallest_normal


def test_the_upstream_gradient_is_multiplied_before_rounding():
    """What float16 could not hold in between."""
    gradients = []
    for scale in (1.0, 1e9):
        hidden, weight, rest = inputs([9, 4, 7], 8, 40, 37, torch.float16)
        result = linear_sppo_loss(hidden, weight, *rest[:4], rest[4] * scale, lengths=[9, 4, 7])
        (result.loss_sum / scale).backward()
        gradients.append((hidden.grad, weight.grad))
    for one, other in zip(*gradients, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, atol=1e-2, rtol=2e-3)


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(1, 200))
@example([3, 4, 2, 5], 14)  # exactly full, twice
def test_groups_are_whole_sequences_in_order_within_the_budget(lengths, budget):
    groups = cut_groups(lengths, 2, budget)
    assert groups[0][0] == 0 and groups[-1][1] == len(lengths)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(groups))
    for first, end in groups:
        assert end - first <= 1 or 2 * sum(lengths[first:end]) <= budget
    for (first, end), (_, further) in itertools.pairwise(groups):
        assert 2 * sum(lengths[first : end + 1]) > budget or further == end, "a group was cut too early"


@pytest.mark.parametrize("lengths", [[2, 2, 2, 0, 1], [5, 2, 3, 4, 1]], ids=["all here", "more elsewhere"])
def test_tokens_of_a_group_come_together_in_their_order(lengths):
    ids = torch.tensor([2, 0, 1, 0, 2, 1, 4])
    order, bounds = order_by_sequence(ids, [(0, 2), (2, 4), (4, 5)], lengths)
    assert order.tolist() == [1, 3, 2, 5, 0, 4, 6] and bounds == [(0, 4), (4, 6), (6, 7)]
    assert order_by_sequence(ids, [(0, 5)], [7] * 5) == (None, [(0, 7)])


def test_a_gpu_that_holds_whole_sequences_is_not_waited_for():
    """A fake tensor on CUDA has no values: whatever asked for one would raise."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        ids = torch.empty(7, dtype=torch.int64, device="cuda")
        order, bounds = order_by_sequence(ids, [(0, 2), (2, 4), (4, 5)], [2, 2, 2, 0, 1])
        assert order.device.type == "cuda" and bounds == [(0, 4), (4, 6), (6, 7)]
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            order_by_sequence(ids, [(0, 2), (2, 4), (4, 5)], [9, 2, 2, 0, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.zeros(8, dtype=torch.long)}, r"targets \[8\] must be \[7\]"),
        ({"targets": torch.full((7,), 11)}, r"targets must be in \[0, vocab_size=11\)"),
        ({"old_log_probs": torch.zeros(7, 1)}, r"old_log_probs \[7, 1\] must be \[7\]"),
        ({"sequence_ids": torch.zeros(7)}, r"sequence_ids must have an integer dtype"),
        ({"sequence_ids": torch.zeros(7, dtype=torch.bool)}, r"sequence_ids must have an integer dtype"),
        ({"sequence_ids": torch.full((7,), 2)}, r"sequence_ids must be in \[0, 2\)"),
        ({"sequence_ids": torch.zeros(7, dtype=torch.long)}, r"lengths\[0\] is 4, but this rank alone holds 7 tokens"),
        ({"regression_target": torch.zeros(2, 1)}, r"regression_target \[2, 1\] must be \[2\]"),
        ({"coefficient": torch.zeros(3)}, r"coefficient \[3\] must be \[2\]"),
        ({"hidden": torch.zeros(7, 4)}, r"hidden \[7, 4\]"),
        ({"temperature": 0.0}, r"temperature must be positive"),
        ({"chunk_size": 0}, r"chunk_size must be at least 1"),
        ({"kernels": "cuda"}, r"kernels is 'cuda'"),
    ],
)
def test_raises_and_names_the_argument(change, message):
    hidden, weight, (targets, old, ids, delta, coefficient) = inputs([4, 3])
    arguments = {
        "hidden": hidden,
        "weight": weight,
        "targets": targets,
        "old_log_probs": old,
        "sequence_ids": ids,
        "regression_target": delta,
        "coefficient": coefficient,
        "lengths": [4, 3],
        "vocab_size": 11,
    } | change
    with pytest.raises(ValueError, match=message):
        linear_sppo_loss(**arguments)
