from __future__ import annotations

import pytest
import torch

from sppo_megatron.engines import fingerprint as fingerprint_module
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


LARGE = 3 * 2**14 + 5  # words: rows, columns and a rest


@pytest.mark.parametrize("count", [1, 3, 8, LARGE * 4, LARGE * 4 + 3])
def test_any_flipped_bit_shows(count):
    """In bf16: of one element, of a part of a word, of a table of words with a rest."""
    torch.manual_seed(1)
    tensor = torch.randn(count).bfloat16()
    expected = fingerprint([("a", tensor)]).checksum
    for place in {0, 1, count // 2, count - 2, count - 1} & set(range(count)):
        for bit in (0, 9, 14, 15):
            changed = tensor.clone()
            changed.view(torch.int16)[place] ^= -(2**15) if bit == 15 else 1 << bit
            found = fingerprint([("a", changed)]).checksum
            assert found[:16] != expected[:16] and found[16:] != expected[16:], (place, bit)


@pytest.mark.parametrize(
    ("one", "other"),
    [(0, 1), (0, 2**14), (2**14, 2 * 2**14), (5, 3 * 2**14 + 1), (3 * 2**14, 3 * 2**14 + 4), (1, 3 * 2**14 + 1)],
    ids=["columns", "rows", "other rows", "a word of the rest", "within the rest", "rest and its column"],
)
def test_exchanged_words_show(one, other):
    """Even those that differ in their sign alone, which a sum with weights may miss."""
    words = torch.arange(LARGE, dtype=torch.int64)
    words[other] = words[one] ^ -(2**63)
    exchanged = words.clone()
    exchanged[[one, other]] = words[[other, one]]
    before, after = (fingerprint([("a", w.view(torch.float64))]).checksum for w in (words, exchanged))
    assert before[:16] == after[:16] and before[16:] != after[16:]


def test_large_tensors_are_not_copied():
    tensor = torch.zeros(2**23, dtype=torch.bfloat16)
    assert fingerprint_module._words(tensor).data_ptr() == tensor.data_ptr()
    apart = torch.arange(19, dtype=torch.float32)[1:]  # begins in the middle of a word
    assert fingerprint([("a", apart)]) == fingerprint([("a", apart.clone())])


def test_nothing_was_seen():
    assert (fingerprint([]).tensors, fingerprint([]).num_bytes) == (0, 0)
