"""Linear log-probs in one process: the formula, what is allocated, and what is raised."""

from __future__ import annotations

import math
import weakref
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from sppo_megatron.parallel import logit_tiles, vocab_parallel_linear_log_probs
from sppo_megatron.parallel.logit_tiles import choose_tiles
from tests.unit.parallel.mixed_products import emulate_mixed_products


def inputs(tokens=9, width=5, columns=13, vocab_size=11, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(columns, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, vocab_size, (tokens,), generator=generator)


def test_worked_number():
    """Logits (0, log 3) at temperature 1: probabilities ¼ and ¾."""
    hidden, weight = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [math.log(3.0)]])
    log_probs, entropy = vocab_parallel_linear_log_probs(hidden, weight, torch.tensor([0, 1]), with_entropy=True)
    assert log_probs.tolist() == pytest.approx([math.log(0.25), math.log(0.75)], abs=1e-6)
    assert entropy.tolist() == pytest.approx([0.25 * math.log(4) + 0.75 * math.log(4 / 3)] * 2, abs=1e-6)
    assert log_probs.dtype == entropy.dtype == torch.float32


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("chunk_size", [1, 7, None])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_gradients_are_those_of_the_values(temperature, chunk_size, with_entropy):
    hidden, weight, targets = inputs()

    def function(hidden, weight):
        return vocab_parallel_linear_log_probs(
            hidden,
            weight,
            targets,
            vocab_size=11,
            temperature=temperature,
            chunk_size=chunk_size,
            with_entropy=with_entropy,
        )

    assert torch.autograd.gradcheck(function, (hidden, weight))


@settings(max_examples=100, deadline=None)
@given(
    tokens=st.integers(0, 20),
    columns=st.integers(1, 300),
    padding=st.integers(0, 9),
    tile=st.tuples(st.integers(1, 25), st.integers(1, 310)),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
)
def test_any_shape_and_tile_agree_with_plain_torch(tokens, columns, padding, tile, temperature):
    hidden, weight, targets = inputs(tokens, 4, columns + padding, columns, torch.float32)
    with torch.no_grad():
        weight[columns:] = float("nan")
    with mock.patch.object(logit_tiles, "choose_tiles", lambda *_: tile):
        log_probs, entropy = vocab_parallel_linear_log_probs(
            hidden, weight, targets, vocab_size=columns, temperature=temperature, with_entropy=True
        )
        (log_probs.sum() + entropy.square().sum()).backward()
    hidden_64, weight_64 = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    full = torch.log_softmax(hidden_64 @ weight_64[:columns].t() / temperature, -1)
    expected_entropy = -(full.exp() * full).sum(-1)
    expected = full.gather(1, targets[:, None])[:, 0]
    (expected.sum() + expected_entropy.square().sum()).backward()
    torch.testing.assert_close(log_probs.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), expected_entropy, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(hidden.grad.double(), hidden_64.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(weight.grad[:columns].double(), weight_64.grad[:columns], atol=1e-4, rtol=1e-4)
    assert (weight.grad[columns:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_lose_nothing(dtype):
    hidden, weight, targets = inputs(64, 128, 3000, 3000, dtype)
    with torch.no_grad():
        weight.mul_(0.25)  # logits of a few nats, as models have them
    log_probs = vocab_parallel_linear_log_probs(hidden, weight, targets)
    exact = torch.log_softmax(hidden.double() @ weight.double().t(), -1).gather(1, targets[:, None])[:, 0]
    assert float((log_probs.double() - exact).detach().abs().max()) <= 1e-5
    log_probs.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("entropy_weight", [0.0, 0.5, 1e-6])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9, 0.0])
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_low_precision_products(monkeypatch, dtype, entropy_weight, scale, chunk_size):
    """The path of devices that multiply low-precision operands into float32, emulated: any upstream scale is safe."""

    with_entropy = entropy_weight > 0
    hidden, weight, targets = inputs(20, 8, 40, 37, dtype)
    hidden_64, weight_64 = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    expected = vocab_parallel_linear_log_probs(
        hidden_64, weight_64, targets, vocab_size=37, temperature=2.0, with_entropy=with_entropy
    )
    emulate_mixed_products(monkeypatch)
    actual = vocab_parallel_linear_log_probs(
        hidden, weight, targets, vocab_size=37, temperature=2.0, with_entropy=with_entropy, chunk_size=chunk_size
    )
    for result in (actual, expected):
        total = (result[0] + entropy_weight * result[1]).sum() if with_entropy else result.sum()
        (scale * total).backward()
    for one, other in ((hidden.grad, hidden_64.grad), (weight.grad, weight_64.grad)):
        representable = other.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max)
        error = (one.double().clamp(torch.finfo(dtype).min, torch.finfo(dtype).max) - representable).abs().max()
        assert float(error) <= 2e-2 * float(representable.abs().max()) + torch.finfo(dtype).smallest_normal


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_operands_of_different_precision_lose_nothing(monkeypatch, dtypes):
    """No device multiplies them as they are: both are taken up to float32."""
    hidden, weight, targets = inputs(20, 8, 40, 40, torch.float32)
    hidden, weight = (x.detach().to(dtype).requires_grad_() for x, dtype in zip((hidden, weight), dtypes, strict=True))
    exact = torch.log_softmax(hidden.double() @ weight.double().t(), -1).gather(1, targets[:, None])[:, 0]
    emulate_mixed_products(monkeypatch)
    log_probs = vocab_parallel_linear_log_probs(hidden, weight, targets)
    torch.testing.assert_close(log_probs.double(), exact, atol=1e-5, rtol=0)
    log_probs.sum().backward()
    assert (hidden.grad.dtype, weight.grad.dtype) == dtypes


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_float64_where_an_input_is(dtypes):
    hidden, weight, targets = inputs()
    assert vocab_parallel_linear_log_probs(hidden.to(dtypes[0]), weight.to(dtypes[1]), targets).dtype == torch.float64


@pytest.mark.parametrize("chunk_size", [5, None])
def test_the_gradient_of_weight_is_rounded_once(monkeypatch, chunk_size):
    """Of 320 equal tokens: a sum in bfloat16 over tiles of five, 2.5 each, would lose halves above 128."""
    emulate_mixed_products(monkeypatch)
    hidden = torch.ones(320, 4, dtype=torch.bfloat16)
    weight = torch.zeros(2, 4, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(320, dtype=torch.long)
    vocab_parallel_linear_log_probs(hidden, weight, targets, chunk_size=chunk_size).sum().backward()
    assert weight.grad.tolist() == [[160.0] * 4, [-160.0] * 4]


def test_targets_of_any_integer_dtype():
    hidden, weight, targets = inputs()
    expected = vocab_parallel_linear_log_probs(hidden, weight, targets)
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(vocab_parallel_linear_log_probs(hidden, weight, targets.to(dtype)), expected)


def test_only_the_needed_gradients_are_computed():
    for wanted in (0, 1):
        hidden, weight, targets = inputs()
        both = [hidden, weight]
        vocab_parallel_linear_log_probs(hidden, weight, targets).sum().backward()
        expected = both[wanted].grad
        both = [tensor.detach().requires_grad_(i == wanted) for i, tensor in enumerate(both)]
        vocab_parallel_linear_log_probs(*both, targets).sum().backward()
        assert torch.equal(both[wanted].grad, expected)
        assert both[1 - wanted].grad is None


def test_entropy_alone_can_be_differentiated():
    hidden, weight, targets = inputs()
    vocab_parallel_linear_log_probs(hidden, weight, targets, with_entropy=True)[1].sum().backward()
    hidden_64 = hidden.detach().clone().requires_grad_()
    full = torch.log_softmax(hidden_64 @ weight.detach().t(), -1)
    (-(full.exp() * full).sum()).backward()
    torch.testing.assert_close(hidden.grad, hidden_64.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_tokens_is_connected_to_the_graph(monkeypatch, dtype):
    if dtype == torch.float16:
        emulate_mixed_products(monkeypatch)
    hidden, weight, targets = inputs(tokens=0, dtype=dtype)
    log_probs = vocab_parallel_linear_log_probs(hidden, weight, targets)
    assert log_probs.shape == (0,) and log_probs.requires_grad
    log_probs.sum().backward()
    assert hidden.grad.shape == (0, 5) and weight.grad.shape == (13, 5) and not weight.grad.any()


def test_second_derivative_is_refused():
    hidden, weight, targets = inputs()
    log_probs = vocab_parallel_linear_log_probs(hidden, weight, targets)
    (grad,) = torch.autograd.grad(log_probs.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 4)
        return result


@pytest.mark.parametrize("with_entropy", [False, True])
def test_no_tensor_of_tokens_times_vocabulary(with_entropy):
    tokens, vocabulary, width = 2048, 32768, 16
    hidden, weight = torch.randn(tokens, width).requires_grad_(), torch.randn(vocabulary, width).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,))
    with LargestTensor() as largest:
        result = vocab_parallel_linear_log_probs(hidden, weight, targets, with_entropy=with_entropy)
        result = result[0] + result[1] if with_entropy else result
        result.sum().backward()
    assert largest.elements >= vocabulary * width, "nothing was recorded"
    assert largest.elements < tokens * vocabulary / 4, f"a tensor of {largest.elements} float32 elements was created"


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors created within it held at one time."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage):
        pointer = storage.data_ptr()
        if pointer and pointer not in self.known:
            self.known.add(pointer)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.remove, pointer, storage.nbytes())

    def remove(self, pointer, size):
        self.known.discard(pointer)
        self.now -= size


@pytest.mark.parametrize("chunk_size", [128, None])
def test_memory_has_a_bound_where_low_precision_is_multiplied(monkeypatch, chunk_size):
    """A tile of logits in float32 and one of gradients in bfloat16, the gradient of hidden, and one accumulator."""
    tokens, columns, width = 1024, 500, 64
    hidden, weight, targets = inputs(tokens, width, columns, columns, torch.bfloat16)
    emulate_mixed_products(monkeypatch)
    tile_tokens, tile_columns = choose_tiles(tokens, columns, "cpu", chunk_size)
    results = hidden.nbytes + weight.nbytes
    with LiveBytes() as live:
        live.known |= {tensor.untyped_storage().data_ptr() for tensor in (hidden, weight, targets)}
        vocab_parallel_linear_log_probs(hidden, weight, targets, chunk_size=chunk_size).sum().backward()
    extra = live.peak - results
    assert extra > 6 * tile_tokens * tile_columns, "not everything was recorded"
    # without kernels also the rows of hidden that carry the coefficients; with several tiles of tokens an accumulator
    weighted = 6 * tile_tokens * width
    accumulator = 4 * tile_columns * width if chunk_size else 0
    assert extra <= 6 * tile_tokens * tile_columns + 4 * tokens * width + weighted + accumulator + 32 * tokens
    assert extra <= 6 * tile_tokens * tile_columns + 8 * tokens * width + 32 * tokens


def test_forward_alone_keeps_nothing():
    hidden, weight, targets = inputs()
    with torch.no_grad():
        assert vocab_parallel_linear_log_probs(hidden, weight, targets).grad_fn is None
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()), lambda _: None):
        vocab_parallel_linear_log_probs(hidden.detach(), weight.detach(), targets, with_entropy=True)
        assert saved == []
        vocab_parallel_linear_log_probs(hidden, weight, targets, with_entropy=True)
    assert sum(saved) == hidden.numel() + weight.numel() + 3 * targets.numel()


@pytest.mark.parametrize("tokens", [0, 1, 7, 2048, 100_000])
@pytest.mark.parametrize("columns", [0, 1, 31, 32_000, 256_000])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("chunk_size", [None, 1, 100])
def test_tiles_fit_their_budget(tokens, columns, device, chunk_size):
    rows, width = choose_tiles(tokens, columns, device, chunk_size)
    assert 1 <= rows <= max(1, tokens) and 1 <= width <= max(1, columns)
    assert chunk_size is None or rows <= chunk_size
    assert rows * width * 4 <= {"cpu": 64, "cuda": 256}[device] * 2**20
    # nor are they so small that there are more of them than needed
    assert 2 * rows >= min(tokens, chunk_size or 1024)
    assert width >= min(columns, 256)
    assert width >= columns or rows * (width + 64) * 4 >= {"cpu": 4, "cuda": 128}[device] * 2**20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(3, 9, 5)}, r"hidden \[3, 9, 5\]"),
        ({"weight": torch.zeros(13, 4)}, r"weight \[13, 4\]"),
        ({"targets": torch.zeros(8, dtype=torch.long)}, r"targets \[8\] must be \[9\]"),
        ({"targets": torch.zeros(9)}, r"integer dtype"),
        ({"targets": torch.zeros(9, dtype=torch.bool)}, r"integer dtype"),
        ({"targets": torch.full((9,), 11)}, r"targets must be in \[0, vocab_size=11\)"),
        ({"targets": torch.full((9,), -100)}, r"targets must be in \[0, vocab_size=11\)"),
        ({"vocab_size": 14}, r"vocab_size is 14"),
        ({"vocab_size": 0}, r"vocab_size is 0"),
        ({"temperature": 0.0}, r"temperature must be positive"),
        ({"temperature": math.nan}, r"temperature must be positive"),
        ({"chunk_size": 0}, r"chunk_size must be at least 1"),
        ({"sequence_parallel": True}, r"needs tp_group"),
    ],
)
def test_raises_and_names_the_argument(change, message):
    hidden, weight, targets = inputs()
    arguments = {"hidden": hidden, "weight": weight, "targets": targets, "vocab_size": 11} | change
    with pytest.raises(ValueError, match=message):
        vocab_parallel_linear_log_probs(**arguments)
