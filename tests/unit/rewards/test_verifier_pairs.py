"""Responses, answers and who is right about them: our rewards and those of three other trainers, in verifier_pairs.csv.

Columns: response and answer with the escapes of Python; is_right as a person decides; reward, the kind that
takes such an answer, and its verdict; the verdicts of the others.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from sppo_megatron.rewards.own_turn import own_turn
from sppo_megatron.rewards.verifiers import math_verify, number_of_answer, numeric

with open(Path(__file__).with_name("verifier_pairs.csv"), encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))
REWARDS = {"numeric": numeric, "math_verify": math_verify}
OTHERS = ("verl_gsm8k", "trl", "nemo_rl")
WRONG = {"ours": 0, "verl_gsm8k": 77, "trl": 72, "nemo_rl": 35}


def texts(row: dict[str, str]) -> tuple[str, str]:
    response, answer = (row[key].encode().decode("unicode_escape") for key in ("response", "answer"))
    return response, answer


def verdict(row: dict[str, str], key: str) -> bool:
    return row[key] == "right"


@pytest.mark.parametrize("row", ROWS, ids=[f"{number}" for number in range(len(ROWS))])
def test_ours_is_right(row):
    response, answer = texts(row)
    if row["reward"] == "math_verify":
        pytest.importorskip("math_verify")
        with pytest.raises(ValueError, match="math_verify compares expressions"):
            number_of_answer(answer)
    assert REWARDS[row["reward"]]("p", response, answer).correct == verdict(row, "ours") == verdict(row, "is_right")


def test_the_others_say_what_the_table_says():
    pytest.importorskip("math_verify")
    from tests.unit.rewards.other_verifiers import OTHERS as RULES

    assert tuple(RULES) == OTHERS
    for row in ROWS:
        found = {name: rule(*texts(row)) for name, rule in RULES.items()}
        assert found == {name: verdict(row, name) for name in OTHERS}, row


def test_where_they_differ():
    """How many of the pairs each is wrong about."""
    wrong = {name: sum(row[name] != row["is_right"] for row in ROWS) for name in ("ours", *OTHERS)}
    assert len(ROWS) >= 140
    assert wrong == WRONG


@pytest.mark.parametrize(
    ("response", "own"),
    [
        ("42\n\nHuman: And 7?", "42\n\n"),
        ("42\n**User**: And 7?", "42\n"),
        ("Human: 42", "Human: 42"),  # nothing is before it
        ("42 <|im_start|>user\n7", "42 "),
        ("A human: 42", "A human: 42"),
        ("Question: 3 + 4?\nAnswer: 7", "Question: 3 + 4?\nAnswer: 7"),
        ("It is 3.\nQuestion: 3 + 4?\nAnswer: 7", "It is 3.\nQuestion: 3 + 4?\nAnswer: 7"),
        ("#### 7\nQuestion: 1 + 1?\n#### 2", "#### 7\n"),
        ("The answer is 7.\n\nProblem 2: 1 + 1?", "The answer is 7.\n\n"),
        ("", ""),
    ],
)
def test_another_turn_is_not_the_response(response, own):
    assert own_turn(response) == own
