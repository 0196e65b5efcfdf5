"""How an answer is read, by hand-worked numbers."""

from __future__ import annotations

import math

import pytest

from sppo_megatron.config import JudgeConfig
from sppo_megatron.rewards.judge_question import question_key, read_answer, request_body, used_tokens
from tests.unit.rewards.endpoint import completion


@pytest.mark.parametrize(
    ("text", "log_probs", "first_wins", "mass"),
    [
        ("A", None, 1.0, None),
        (" B\n", None, 0.0, None),
        ("tie", None, 0.5, None),
        ("A", {"A": math.log(0.6), "B": math.log(0.2)}, 0.75, 0.8),
        ("B", {"B": math.log(0.3), " A": math.log(0.05), "A": math.log(0.05)}, 0.25, 0.4),
        ("A", {"A": math.log(0.9)}, 1.0, 0.9),
        ("x", {"x": math.log(0.9), "B": math.log(0.1)}, 0.0, 0.1),
        ("B", {"b": -0.1}, 0.0, None),  # neither is listed: the letter counts
        ("A", {"A": math.nan}, 1.0, None),
        ("A", {"A": math.inf}, 1.0, None),
    ],
)
def test_readings(text, log_probs, first_wins, mass):
    reading = read_answer(completion(text, log_probs))
    assert reading.first_wins == pytest.approx(first_wins, rel=1e-12)
    assert reading.letter_mass == (None if mass is None else pytest.approx(mass, rel=1e-12))


@pytest.mark.parametrize("text", ["", "a", "A.", "AB", "Tie", "Response A", "A\nB", None])
def test_strict(text):
    with pytest.raises(ValueError, match="neither A, B nor tie"):
        read_answer(completion(text))


@pytest.mark.parametrize("reply", [None, 3, {}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": 1}]}, "A"])
def test_what_is_no_completion(reply):
    with pytest.raises(ValueError, match="no chat completion"):
        read_answer(reply)


def test_broken_log_probs_leave_the_letter():
    for log_probs in (None, [], {}, {"content": None}, {"content": []}, {"content": [{"top_logprobs": [{}]}]}):
        reply = completion("B")
        reply["choices"][0]["logprobs"] = log_probs
        assert read_answer(reply).first_wins == 0.0


def test_every_part_of_a_question_is_in_its_key():
    judge = JudgeConfig()
    bodies = [
        request_body("a|b", "m", judge),
        request_body("a|c", "m", judge),
        request_body("a|b", "n", judge),
        request_body("a|b", "m", JudgeConfig(logprobs=False)),
        request_body("a|b", "m", JudgeConfig(max_tokens=2)),
        request_body("a|b", "m", JudgeConfig(request={"seed": 1})),
    ]
    assert len({question_key(body) for body in bodies}) == len(bodies)
    assert question_key(request_body("a|b", "m", judge)) == question_key(bodies[0])


@pytest.mark.parametrize(
    ("reply", "tokens"),
    [
        (completion("A"), (7, 1)),
        ({"usage": {"prompt_tokens": 3}}, (3, 0)),
        ({"usage": {"prompt_tokens": "many", "completion_tokens": None}}, (0, 0)),
        ({"usage": None}, (0, 0)),
        ([], (0, 0)),
        (None, (0, 0)),
    ],
)
def test_tokens_as_far_as_the_endpoint_counts_them(reply, tokens):
    assert used_tokens(reply) == tokens
