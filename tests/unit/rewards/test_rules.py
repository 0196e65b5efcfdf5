"""What each rule accepts and what it doesn't, in tables, and what is said of a rule that is none."""

from __future__ import annotations

import numpy as np
import pytest

from sppo_megatron.config import RewardConfig
from sppo_megatron.config.reward import RuleConfig
from sppo_megatron.rewards.registry import build_scorer, check_scorer
from sppo_megatron.rewards.rules import choice, json_schema, length, letter_of_answer, regex, tags
from sppo_megatron.types import Group, Prompt, Response


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("**B**", "B"),
        ("B) because it is heavier", "B"),
        ("B. Paris", "B"),
        ("The answer is B.", "B"),
        ("The correct answer is (B) Paris.", "B"),
        ("**Answer:** B", "B"),
        ("Answer: $B$", "B"),
        ("the right option is: 'b'", "B"),
        ("A is wrong, C too.\n\nB", "B"),
        ("First I thought the answer is A, but the answer is B", "B"),
        (r"So \boxed{B}", "B"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{(B)}", "B"),
        (r"The answer is A? No: \boxed{B}", "B"),
        ("B\n\nHuman: another question. Answer: C", "B"),
        ("The answer is Paris.", None),
        ("The answer is a bird.", None),
        ("The answer is a.", "A"),
        ("My answer I give later", None),
        ("The answer isn't clear", None),
        ("Because of B I can't say", None),
        ("I don't know", None),
        ("", None),
    ],
)
def test_choice(response, letter):
    for other in "ABC":
        assert choice(response, other) == (float(other == letter), other == letter)


@pytest.mark.parametrize(("answer", "letter"), [("A", "A"), (" (b) ", "B"), ("C.", "C"), ("d)", "D"), ("`E`", "E")])
def test_letters(answer, letter):
    assert letter_of_answer(answer) == letter


@pytest.mark.parametrize("answer", ["", "AB", "Paris", "1", "A or B"])
def test_no_letter(answer):
    with pytest.raises(ValueError, match="no letter of a choice"):
        letter_of_answer(answer)


@pytest.mark.parametrize(
    ("pattern", "response", "answer", "right"),
    [
        ("cat|dog", "a dog", None, True),
        ("cat|dog", "a bird", None, False),
        ("^Yes", "No. Yes", None, False),
        ("a.c", "a\nc", None, True),
        (r"#### (?P<answer>\S+)", "#### 3 no #### 4", "4", True),
        (r"#### (?P<answer>\S+)", "#### 4 no #### 3", "4", False),
        (r"#### (?P<answer>\S+)", "4", "4", False),
        (r"(?P<answer>x)?y", "y", "x", False),
        ("dog", "A cat\nHuman: a dog?", None, False),  # another one's turn
    ],
)
def test_regex(pattern, response, answer, right):
    assert regex(response, answer, pattern=pattern) == (float(right), right)


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ('{"name": "Ada", "age": 36}', True),
        (' {"name": "Ada"}\n', True),
        ('Here it is:\n```json\n{"name": "Ada"}\n```', True),
        ('```\n{"name": "Ada"}\n```\n', True),
        ('{"name": "Ada", "age": -1}', False),
        ('{"age": 36}', False),
        ('{"name": "Ada", "city": "London"}', False),
        ('["Ada"]', False),
        ('{"name": "Ada"', False),
        ('Here it is: {"name": "Ada"}', False),
        ('```json\n{"name": "Ada"}\n```\n```json\n{"name": "Bob"}\n```', False),
        ("[" * 100_000, False),
        ("", False),
    ],
)
def test_json_schema(response, right):
    assert json_schema(response, schema=PERSON) == (float(right), right)


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("<think>a\nb</think><answer>c</answer>", 1),
        (" <think></think>\n\n<answer>c</answer>\n", 1),
        ("<think>a < b</think><answer><b>c</b></answer>", 1),
        ("<answer>c</answer><think>a</think>", 0),
        ("<think>a</think>", 0),
        ("So: <think>a</think><answer>c</answer>", 0),
        ("<think>a</think> and <answer>c</answer>", 0),
        ("<think>a</think><answer>c</answer><answer>d</answer>", 0),
        ("<think>a<answer>c</answer></think>", 0),
        ("<think>a<think>b</think></think><answer>c</answer>", 0),
        ("", 0),
    ],
)
def test_tags(response, reward):
    assert tags(response, names=["think", "answer"]) == (reward, None)


@pytest.mark.parametrize(
    ("count", "limits", "reward"),
    [
        (5, (0, 5, 0), 1),
        (6, (0, 5, 0), 0),
        (6, (0, 5, 4), 0.75),
        (9, (0, 5, 4), 0),
        (99, (0, 5, 4), 0),
        (3, (4, None, 0), 0),
        (3, (4, None, 2), 0.5),
        (9000, (4, None, 2), 1),
    ],
)
def test_length(count, limits, reward):
    low, high, margin = limits
    mask = np.array([True] * count + [False] * 7)  # what tools say doesn't count
    assert length(mask, at_least=low, at_most=high, margin=margin) == (reward, None)


@pytest.mark.parametrize(
    ("kind", "rule", "said"),
    [
        ("regex", {}, "reward.kind=regex needs reward.rule.pattern"),
        ("regex", {"pattern": "(a"}, "reward.rule.pattern='(a' is no regular expression: missing )"),
        ("json_schema", {}, "reward.kind=json_schema needs reward.rule.schema"),
        ("json_schema", {"schema": {"type": "thing"}}, "reward.rule.schema is no JSON schema: 'thing' is not valid"),
        ("tags", {"tags": []}, "reward.rule.tags=[] must be names that differ"),
        ("tags", {"tags": ["a", "a"]}, "must be names that differ"),
        ("length", {}, "reward.kind=length needs reward.rule.min_tokens or reward.rule.max_tokens"),
        ("length", {"min_tokens": 5, "max_tokens": 4}, "reward.rule.max_tokens=4 is below reward.rule.min_tokens=5"),
    ],
)
def test_rules_that_are_none(kind, rule, said):
    [message] = check_scorer(RewardConfig(kind=kind, rule=RuleConfig(**rule)))
    assert said in message


def test_together_by_their_weights_and_a_pattern_that_never_ends_costs_its_response():
    named = {
        "letter": {"kind": "choice"},
        "form": {"kind": "regex", "rule": {"pattern": "(a+)+$"}, "timeout_s": 1.0, "num_workers": 1, "default": -1.0},
        "brief": {"kind": "length", "rule": {"max_tokens": 4, "margin": 4}},
    }
    scorer = build_scorer(RewardConfig(kind="named", named=named))
    rewards = {"letter": 1.0, "form": 0.5, "brief": 0.25}
    texts = ["Answer: B\naaa", "Answer: C\n" + "a" * 40 + "!"]
    prompt = Prompt(0, np.array([5], np.int32), "p", "B", rewards=rewards)
    try:
        [group] = scorer.score([Group(prompt, [Response(np.zeros(6, np.int32), text) for text in texts])])
    finally:
        scorer.close()
    assert [r.reward for r in group.responses] == [1 + 0.5 + 0.125, 0 - 0.5 + 0.125]
    assert [r.correct for r in group.responses] == [True, False]
    assert group.responses[0].error is None
    assert group.responses[1].error == "form: no result within reward.timeout_s=1 seconds"
