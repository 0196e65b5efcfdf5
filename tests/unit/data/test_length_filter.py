"""What a length filter keeps, and what it says."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from sppo_megatron.data.length_filter import keep_short
from sppo_megatron.types import Prompt

PROMPTS = [Prompt(i, np.zeros(length, np.int32)) for i, length in enumerate((3, 5, 8))]


def kept(limit: int) -> list[int]:
    return [p.index for p in keep_short(PROMPTS, lambda p: len(p.token_ids), limit, "data.limit", "prompts", "a.jsonl")]


def test_the_limit_itself_is_kept(caplog):
    with caplog.at_level(logging.WARNING):
        assert kept(8) == [0, 1, 2] and not caplog.text
        assert kept(5) == [0, 1]
    assert (
        "a.jsonl: dropped 1 of 3 prompts longer than data.limit=5 tokens (the longest has 8); 2 are left" in caplog.text
    )


def test_nothing_left():
    with pytest.raises(
        ValueError, match=r"a.jsonl: all 3 prompts are longer than data.limit=2 .*shortest has 3.*raise"
    ):
        kept(2)
    assert keep_short([], len, 2, "data.limit", "prompts", "a.jsonl") == []
