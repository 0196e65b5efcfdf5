"""The attention in plain torch against the definition, one query at a time in float64.

Context parallelism needs more than one process: see tests/distributed.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

# Megatron's names come through our module: sppo_megatron.policy must be imported before megatron.core.
from sppo_megatron.megatron_cpu.attention import AttnMaskType, PackedSeqParams, TorchAttention, TransformerConfig

HEAD_DIM = 4
FAST = settings(max_examples=30, deadline=None)
CAUSAL, PADDED_CAUSAL, NO_MASK = AttnMaskType.causal, AttnMaskType.padding_causal, AttnMaskType.no_mask


def make_attention(
    heads: int, groups: int, mask: AttnMaskType = CAUSAL, window: int | None = None, sinks: bool = False, **arguments
) -> TorchAttention:
    config = TransformerConfig(
        attention_dropout=0.0,
        num_layers=1,
        hidden_size=heads * HEAD_DIM,
        num_attention_heads=heads,
        num_query_groups=groups,
        kv_channels=HEAD_DIM,
        window_size=None if window is None else (window - 1, 0),
        softmax_type="learnable" if sinks else "vanilla",
    )
    groups_of_processes = SimpleNamespace(cp=None, tp=SimpleNamespace(size=lambda: 1))
    return TorchAttention(config, 1, mask, "self", pg_collection=groups_of_processes, **arguments)


def random_qkv(sq: int, sk: int, batch: int, heads: int, groups: int, seed: int = 0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(length, count):
        return torch.randn(length, batch, count, HEAD_DIM, generator=generator, dtype=torch.float64).to(dtype)

    return draw(sq, heads), draw(sk, groups), draw(sk, groups)


def slow_attention(q, k, v, allowed, scale=HEAD_DIM**-0.5, sinks=None):
    """allowed(query position, key position) says what is seen. sinks: a logit of each head. -> float64 [sq, b, h·d]."""
    sq, batch, heads, d = q.shape
    rows = []
    for i in range(sq):
        for b in range(batch):
            for head in range(heads):
                group = head * k.shape[2] // heads
                seen = [j for j in range(k.shape[0]) if allowed(i, j)]
                scores = torch.stack([(q[i, b, head].double() * k[j, b, group].double()).sum() for j in seen]) * scale
                weights = torch.exp(scores - scores.max())
                values = torch.stack([v[j, b, group].double() for j in seen])
                sink = 0.0 if sinks is None else torch.exp(sinks[head].double() - scores.max())
                rows.append((weights[:, None] * values).sum(0) / (weights.sum() + sink))
    return torch.stack(rows).view(sq, batch, heads * d)


def packed_params(lengths: list[int]) -> PackedSeqParams:
    boundaries = torch.tensor([0, *lengths]).cumsum(0).int()
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=boundaries,
        cu_seqlens_kv=boundaries,
        max_seqlen_q=max(lengths),
        max_seqlen_kv=max(lengths),
    )


def same_segment(lengths: list[int]):
    segment = [number for number, length in enumerate(lengths) for _ in range(length)]
    return lambda i, j: segment[i] == segment[j] and j <= i


HEADS = st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2), (4, 1)])


@FAST
@given(length=st.integers(1, 7), batch=st.integers(1, 3), heads=HEADS, mask=st.sampled_from([CAUSAL, PADDED_CAUSAL]))
def test_causal(length, batch, heads, mask):
    q, k, v = random_qkv(length, length, batch, *heads)
    out = make_attention(*heads, mask)(q, k, v, attention_mask=None)
    assert out.shape == (length, batch, heads[0] * HEAD_DIM)
    torch.testing.assert_close(out, slow_attention(q, k, v, lambda i, j: j <= i), rtol=1e-12, atol=1e-12)


@FAST
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), heads=HEADS)
def test_packed_segments_do_not_see_each_other(lengths, heads):
    total = sum(lengths)
    q, k, v = random_qkv(total, total, 1, *heads)
    attention = make_attention(*heads, PADDED_CAUSAL)
    out = attention(*(t[:, 0] for t in (q, k, v)), attention_mask=None, packed_seq_params=packed_params(lengths))
    assert out.shape == (total, 1, heads[0] * HEAD_DIM)
    torch.testing.assert_close(out, slow_attention(q, k, v, same_segment(lengths)), rtol=1e-12, atol=1e-12)


@FAST
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3), heads=HEADS, window=st.integers(1, 7))
def test_a_window(lengths, heads, window):
    """Of several sequences packed, of each alone, and of its last token over a cache of the others."""
    q, k, v = random_qkv(sum(lengths), sum(lengths), 1, *heads)
    attention, in_segment = make_attention(*heads, window=window), same_segment(lengths)
    expected = slow_attention(q, k, v, lambda i, j: in_segment(i, j) and i - j < window)
    packed = attention(*(t[:, 0] for t in (q, k, v)), None, packed_seq_params=packed_params(lengths))
    torch.testing.assert_close(packed, expected, rtol=1e-12, atol=1e-12)
    first = slice(0, lengths[0])
    torch.testing.assert_close(attention(q[first], k[first], v[first], None), expected[first])
    last = attention(q[lengths[0] - 1 : lengths[0]], k[first], v[first], None, attn_mask_type=NO_MASK)
    torch.testing.assert_close(last, expected[lengths[0] - 1 : lengths[0]])


@FAST
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    heads=HEADS,
    window=st.one_of(st.none(), st.integers(1, 7)),
)
def test_sinks(lengths, heads, window):
    """As windows, with gradients of everything."""
    inputs = random_qkv(sum(lengths), sum(lengths), 1, *heads)
    q, k, v = (t.requires_grad_() for t in inputs)
    attention, in_segment = make_attention(*heads, window=window, sinks=True).double(), same_segment(lengths)
    assert attention.softmax_offset is not None
    with torch.no_grad():
        attention.softmax_offset.copy_(torch.linspace(-2, 3, heads[0]))
    leaves = (q, k, v, attention.softmax_offset)
    expected = slow_attention(
        q, k, v, lambda i, j: in_segment(i, j) and i - j < (window or 9), sinks=attention.softmax_offset
    )
    packed = attention(*(t[:, 0] for t in (q, k, v)), None, packed_seq_params=packed_params(lengths))
    torch.testing.assert_close(packed, expected, rtol=1e-12, atol=1e-12)
    found, wanted = (torch.autograd.grad(out.cos().sum(), leaves) for out in (packed, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    first = slice(0, lengths[0])
    last = attention(q[lengths[0] - 1 : lengths[0]], k[first], v[first], None, attn_mask_type=NO_MASK)
    torch.testing.assert_close(last, expected[lengths[0] - 1 : lengths[0]])


def test_values_of_another_size():
    """Multi-latent attention: packed results come without the batch."""
    q, k, _ = random_qkv(5, 5, 1, 2, 2)
    v = torch.randn(5, 1, 2, 3, dtype=torch.float64)
    attention = make_attention(2, 2, k_channels=HEAD_DIM, v_channels=3)
    wide = torch.nn.functional.pad(v, (0, HEAD_DIM - 3))
    expected = slow_attention(q, k, wide, lambda i, j: j <= i).view(5, 1, 2, HEAD_DIM)[..., :3].reshape(5, 1, 6)
    torch.testing.assert_close(attention(q, k, v, None), expected)
    packed = attention(*(t[:, 0] for t in (q, k, v)), None, packed_seq_params=packed_params([5]))
    torch.testing.assert_close(packed, expected[:, 0])


@FAST
@given(sq=st.integers(1, 2), cached=st.integers(0, 6), batch=st.integers(1, 3), heads=HEADS)
def test_decoding_sees_the_whole_cache(sq, cached, batch, heads):
    q, k, v = random_qkv(sq, sq + cached, batch, *heads)
    out = make_attention(*heads)(q, k, v, attention_mask=None, attn_mask_type=NO_MASK)
    torch.testing.assert_close(out, slow_attention(q, k, v, lambda i, j: True), rtol=1e-12, atol=1e-12)


def test_the_mask_type_of_the_call_goes_before_the_modules():
    q, k, v = random_qkv(5, 5, 1, 2, 2)
    full, causal = (slow_attention(q, k, v, seen) for seen in (lambda i, j: True, lambda i, j: j <= i))
    assert not torch.allclose(full, causal)
    torch.testing.assert_close(make_attention(2, 2, NO_MASK)(q, k, v, None), full)
    torch.testing.assert_close(make_attention(2, 2, NO_MASK)(q, k, v, None, CAUSAL), causal)
    torch.testing.assert_close(make_attention(2, 2, CAUSAL)(q, k, v, None, NO_MASK), full)


def test_softmax_scale():
    q, k, v = random_qkv(5, 5, 2, 2, 1)
    out = make_attention(2, 1, softmax_scale=0.05)(q, k, v, None)
    torch.testing.assert_close(out, slow_attention(q, k, v, lambda i, j: j <= i, scale=0.05))


def test_rows_of_a_batch_do_not_mix():
    q, k, v = random_qkv(6, 6, 3, 4, 2)
    attention = make_attention(4, 2)
    out = attention(q, k, v, None)
    for row in range(3):
        alone = attention(*(t[:, row : row + 1] for t in (q, k, v)), None)
        torch.testing.assert_close(out[:, row : row + 1], alone)


@pytest.mark.parametrize("lengths", [None, [3, 1, 2]], ids=["padded", "packed"])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)], ids=str)
def test_gradients(heads, lengths):
    inputs = [t.requires_grad_() for t in random_qkv(6, 6, 1 if lengths else 2, *heads)]
    attention = make_attention(*heads)
    if lengths:
        seen = same_segment(lengths)
        out = attention(*(t[:, 0] for t in inputs), None, packed_seq_params=packed_params(lengths))
    else:
        seen = lambda i, j: j <= i
        out = attention(*inputs, None)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((out * weights).sum(), inputs)
    expected = torch.autograd.grad((slow_attention(*inputs, seen) * weights).sum(), inputs)
    for gradient, other in zip(gradients, expected, strict=True):
        assert gradient.abs().max() > 0.01
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_dtypes(dtype, tolerance):
    q, k, v = random_qkv(16, 16, 2, 4, 2, dtype=dtype)
    out = make_attention(4, 2)(q, k, v, None)
    assert out.dtype == dtype
    expected = slow_attention(q, k, v, lambda i, j: j <= i)
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def test_context_parallelism_is_off_without_a_second_rank():
    assert make_attention(2, 1).cp_group is None
