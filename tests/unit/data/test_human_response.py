"""Human responses: tokens with an end, mistakes with a message, long ones counted."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from sppo_megatron.data.human_response import drop_long_responses, human_token_ids
from sppo_megatron.types import Prompt
from tests.unit.data.test_prompts import make_tokenizer


def test_the_text_and_the_end_token():
    tokenizer = make_tokenizer()
    ids = human_token_ids({"gold": "hello world"}, "gold", tokenizer)
    assert ids.dtype == np.int32
    assert ids.tolist() == [*tokenizer("hello world", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"other": "x"}, "no key 'gold' .data.response_key.; the keys are .'other'."),
        ({"gold": ["x"]}, "'gold' is a JSON list, not text"),
        ({"gold": "  "}, "empty response under 'gold'"),
    ],
)
def test_mistakes(record, said):
    with pytest.raises(ValueError, match=said):
        human_token_ids(record, "gold", make_tokenizer())


def test_no_end_token():
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        human_token_ids({"gold": "a"}, "gold", tokenizer)


def prompts_with(*lengths):
    human = [None if length is None else np.zeros(length, np.int32) for length in lengths]
    return [Prompt(i, np.array([1], np.int32), human_token_ids=ids) for i, ids in enumerate(human)]


def test_long_responses_are_dropped_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        kept = drop_long_responses(prompts_with(3, 9, None, 4), 4, "train.jsonl")
    assert [prompt.index for prompt in kept] == [0, 2, 3]
    assert "train.jsonl: dropped 1 of 4 human responses longer than rollout.max_response_length=4" in caplog.text
    assert "the longest has 9); 3 are left" in caplog.text
    caplog.clear()
    assert len(drop_long_responses(prompts_with(3, None), 4, "train.jsonl")) == 2 and not caplog.text


def test_nothing_left():
    with pytest.raises(ValueError, match=r"all 2 human responses .*max_response_length=2 tokens .the shortest has 3"):
        drop_long_responses(prompts_with(3, 9), 2, "train.jsonl")
