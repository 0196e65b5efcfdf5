"""Log-probs from logits in one process: the formula, the caller's tensor, strides, and what is raised."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sppo_megatron.parallel import vocab_parallel_log_probs


def expected(logits, targets, temperature=1.0):
    full = torch.log_softmax(logits.double() / temperature, -1)
    return full.gather(-1, targets.unsqueeze(-1)).squeeze(-1), -(full.exp() * full).sum(-1)


def random_logits(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)
    return logits.requires_grad_(), torch.randint(0, shape[-1] - 2, shape[:-1], generator=generator)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("chunk_size", [1, 7, None])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_gradients_are_those_of_the_values(temperature, chunk_size, with_entropy):
    logits, targets = random_logits(9, 13, dtype=torch.float64)

    def function(logits):
        return vocab_parallel_log_probs(
            logits,
            targets,
            vocab_size=11,
            temperature=temperature,
            chunk_size=chunk_size,
            with_entropy=with_entropy,
        )

    assert torch.autograd.gradcheck(function, (logits,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_an_untouched_input(dtype, temperature):
    logits, targets = random_logits(5, 7, 1000, dtype=dtype)
    before = logits.detach().clone()
    log_probs, entropy = vocab_parallel_log_probs(logits, targets, temperature=temperature, with_entropy=True)
    for actual, wanted in zip((log_probs, entropy), expected(logits, targets, temperature), strict=True):
        assert actual.dtype == torch.float32
        assert float((actual.double() - wanted).detach().abs().max()) <= 1e-5
    log_probs.sum().backward()
    assert torch.equal(logits.detach(), before)
    assert logits.grad.dtype == dtype


def test_targets_of_any_integer_dtype():
    logits, targets = random_logits(9, 13)
    expected = vocab_parallel_log_probs(logits, targets)
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(vocab_parallel_log_probs(logits, targets.to(dtype)), expected)


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3,), (2, 3, 4)])
def test_any_leading_shape(shape):
    logits, targets = random_logits(*shape, 17)
    log_probs, entropy = vocab_parallel_log_probs(logits, targets, with_entropy=True)
    assert log_probs.shape == entropy.shape == shape and log_probs.requires_grad
    (log_probs.sum() + entropy.sum()).backward()
    assert logits.grad.shape == logits.shape
    torch.testing.assert_close(log_probs.double(), expected(logits, targets)[0], atol=1e-5, rtol=0)


def test_strided_logits_are_not_copied():
    """Transposed from [sequence, batch] and cut by one token, as a caller has them: no copy, the right gradient."""
    base, _ = random_logits(6, 4, 1000)
    logits = base.detach().transpose(0, 1)[:, :-1].requires_grad_()
    targets = torch.randint(0, 1000, (4, 5))
    assert not logits.is_contiguous()
    recorder = LargestTensor(logits.detach())
    with recorder:
        log_probs = vocab_parallel_log_probs(logits, targets, chunk_size=2)
    assert recorder.elements <= 2 * 1000
    log_probs.sum().backward()
    wanted, _ = expected(logits, targets)
    torch.testing.assert_close(log_probs.double(), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.grad, torch.autograd.grad(wanted.sum(), logits)[0], atol=1e-6, rtol=0)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor created by any operation, views of `known` aside."""

    def __init__(self, known):
        super().__init__()
        self.known, self.elements = known.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() != self.known:
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 4)
        return result


def test_no_float32_copy_of_the_logits():
    logits, targets = random_logits(512, 8192, dtype=torch.bfloat16)
    recorder = LargestTensor(logits.detach())
    with recorder:
        vocab_parallel_log_probs(logits, targets, with_entropy=True)
    assert 0 < recorder.elements <= 512 * 8192 / 8, f"{recorder.elements} float32 elements"
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor), lambda _: None):
        vocab_parallel_log_probs(logits, targets, with_entropy=True)
    assert [tensor.dtype for tensor in saved if tensor.numel() > 512] == [torch.bfloat16]


def test_impossible_tokens():
    """A logit of -inf is a probability of 0: it must not turn the entropy or any gradient into NaN."""
    logits = torch.tensor([[0.0, math.log(3.0), -math.inf]], requires_grad=True)
    log_probs, entropy = vocab_parallel_log_probs(logits, torch.tensor([1]), with_entropy=True)
    assert log_probs.item() == pytest.approx(math.log(0.75), abs=1e-6)
    assert entropy.item() == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3), abs=1e-6)
    (log_probs + entropy).sum().backward()
    slope = 0.25 * 0.75 * math.log(3.0)  # of the entropy of two outcomes
    assert logits.grad.tolist()[0] == pytest.approx([-0.25 + slope, 0.25 - slope, 0.0], abs=1e-6)


@pytest.mark.parametrize("padding", [1e4, math.inf, -math.inf, math.nan])
def test_padding_has_no_probability_and_no_gradient(padding):
    logits, targets = random_logits(4, 10)
    with torch.no_grad():
        logits[:, 8:] = padding
    log_probs, entropy = vocab_parallel_log_probs(logits, targets, vocab_size=8, with_entropy=True)
    wanted = expected(logits[:, :8], targets)
    torch.testing.assert_close(log_probs.double(), wanted[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy.double(), wanted[1], atol=1e-5, rtol=0)
    (log_probs.sum() + entropy.sum()).backward()
    assert (logits.grad[:, 8:] == 0).all() and logits.grad.isfinite().all()


@pytest.mark.parametrize("largest", [1000.0, -1000.0])
def test_large_logits_keep_their_precision(largest):
    """The log-prob of a nearly sure token: not lost in the difference of two large numbers."""
    logits = torch.tensor([[largest, largest - 10.0]])
    log_probs = vocab_parallel_log_probs(logits, torch.tensor([0]))
    assert log_probs.item() == pytest.approx(-math.log1p(math.exp(-10.0)), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3, 5)}, r"logits \[3, 5\]"),
        ({"logits": torch.zeros(4, 10, dtype=torch.long)}, r"floating-point"),
        ({"targets": torch.zeros(4)}, r"integer dtype"),
        ({"targets": torch.full((4,), 9)}, r"targets must be in \[0, vocab_size=9\)"),
        ({"vocab_size": 11}, r"vocab_size is 11"),
        ({"temperature": -1.0}, r"temperature must be positive"),
        ({"chunk_size": 0}, r"chunk_size must be at least 1"),
    ],
)
def test_raises_and_names_the_argument(change, message):
    arguments = {"logits": torch.zeros(4, 10), "targets": torch.zeros(4, dtype=torch.long), "vocab_size": 9} | change
    with pytest.raises(ValueError, match=message):
        vocab_parallel_log_probs(**arguments)
