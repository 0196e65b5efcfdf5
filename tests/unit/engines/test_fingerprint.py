from __future__ import annotations

import pytest
import torch

from sppo_megatron.engines.fingerprint import WeightCounter


def weights(dtype: torch.dtype = torch.float32) -> list[tuple[str, torch.Tensor]]:
    torch.manual_seed(0)
    return [("a", torch.randn(5, 3).to(dtype)), ("b", torch.randn(7).to(dtype)), ("zero", torch.zeros(4, dtype=dtype))]


def fingerprint(pairs):
    counter = WeightCounter()
    assert [name for name, _ in counter.watch(iter(pairs))] == [name for name, _ in pairs]
    return counter.fingerprint()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float64])
def test_equal_weights_in_any_order(dtype):
    one = fingerprint(weights(dtype))
    assert one == fingerprint(weights(dtype)[::-1])
    assert (one.tensors, one.num_bytes) == (3, 26 * dtype.itemsize)


def test_views_count_as_what_they_hold():
    base = torch.randn(6, 4)
    assert fingerprint([("a", base.T)]) == fingerprint([("a", base.T.clone())])


@pytest.mark.parametrize(
    "change",
    [
        lambda pairs: pairs[:2],
        lambda pairs: [*pairs, ("zero2", torch.zeros(1))],
        lambda pairs: [("c", pairs[0][1]), *pairs[1:]],
        lambda pairs: [("a", pairs[0][1].reshape(3, 5)), *pairs[1:]],
        lambda pairs: [("a", torch.nextafter(pairs[0][1], torch.tensor(9.0))), *pairs[1:]],
        lambda pairs: [("a", -pairs[0][1]), *pairs[1:]],
        lambda pairs: [("a", pairs[0][1]), ("b", pairs[1][1].bfloat16()), pairs[2]],
        lambda pairs: [*pairs[:2], ("zero", torch.tensor([0, 0, -0.0, 0]))],
    ],
    ids=["lost", "more", "renamed", "reshaped", "last-bits", "signs", "rounded", "minus-zero"],
)
def test_every_difference_shows(change):
    assert fingerprint(weights()).checksum != fingerprint(change(weights())).checksum


def test_nothing_was_seen():
    assert (fingerprint([]).tensors, fingerprint([]).num_bytes) == (0, 0)
