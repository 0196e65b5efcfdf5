"""Log-probs and the SPPO loss by the Triton kernels on a GPU, against their definitions in float64."""

from __future__ import annotations

import pytest
import torch

from sppo_megatron.parallel import linear_sppo_loss, vocab_parallel_linear_log_probs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
TOKENS, WIDTH, VOCABULARY, PADDED = 200, 128, 4999, 5120
TEMPERATURE = 0.8
# of log-probs in nats, and of gradients relative to the largest; a gradient is rounded to the dtype of its input
TOLERANCE = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (1e-4, 1e-2)}


def make_inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator)
    weight = torch.randn(PADDED, WIDTH, generator=generator) / WIDTH**0.5
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    return hidden.to("cuda", dtype).requires_grad_(), weight.to("cuda", dtype).requires_grad_(), targets.cuda()


def exact_log_probs(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor):
    """(log-probs, entropy) in float64 of the same inputs."""
    log_p = (hidden @ weight[:VOCABULARY].T / TEMPERATURE).log_softmax(-1)
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def in_float64(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def assert_gradients(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    for ours, exact in zip(found, expected, strict=True):
        assert float((ours.grad.double() - exact.grad).abs().max() / exact.grad.abs().max()) <= tolerance


@pytest.mark.parametrize("kernels", ["triton", "torch"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_log_probs_and_entropy(dtype, kernels):
    hidden, weight, targets = make_inputs(dtype)
    log_probs, entropy = vocab_parallel_linear_log_probs(
        hidden, weight, targets, vocab_size=VOCABULARY, temperature=TEMPERATURE, with_entropy=True, kernels=kernels
    )
    (log_probs.sum() + 0.5 * entropy.sum()).backward()
    exact = in_float64(hidden, weight)
    expected, expected_entropy = exact_log_probs(*exact, targets)
    (expected.sum() + 0.5 * expected_entropy.sum()).backward()
    of_values, of_gradients = TOLERANCE[dtype]
    assert log_probs.dtype is entropy.dtype is torch.float32
    torch.testing.assert_close(log_probs.double(), expected, atol=of_values, rtol=0)
    torch.testing.assert_close(entropy.double(), expected_entropy, atol=of_values, rtol=0)
    assert_gradients([hidden, weight], exact, of_gradients)


@pytest.mark.parametrize("kernels", ["triton", "torch"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_loss(dtype, kernels):
    hidden, weight, targets = make_inputs(dtype)
    sequences = 8
    ids = torch.arange(TOKENS, device="cuda") * sequences // TOKENS
    old = torch.full((TOKENS,), -8.0, device="cuda")
    target, coefficient = torch.linspace(-1, 1, sequences, device="cuda"), torch.full((sequences,), 1e-3, device="cuda")
    loss = linear_sppo_loss(
        *(hidden, weight, targets, old, ids, target, coefficient),
        lengths=[TOKENS // sequences] * sequences,
        vocab_size=VOCABULARY,
        temperature=TEMPERATURE,
        kernels=kernels,
    )
    loss.loss_sum.backward()
    exact = in_float64(hidden, weight)
    log_probs, _ = exact_log_probs(*exact, targets)
    log_ratio = torch.zeros(sequences, dtype=torch.float64, device="cuda").index_add(0, ids, log_probs - old.double())
    expected = (coefficient.double() * (log_ratio - target.double()) ** 2).sum()
    expected.backward()
    of_values, of_gradients = TOLERANCE[dtype]
    torch.testing.assert_close(loss.log_probs.double(), log_probs.detach(), atol=of_values, rtol=0)
    torch.testing.assert_close(loss.loss_sum.double(), expected.detach(), atol=0, rtol=1e-4)
    assert_gradients([hidden, weight], exact, of_gradients)
