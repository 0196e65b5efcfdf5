"""Scoring as a whole: new groups, one form of one fact, and an end where too much of it failed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pytest

from sppo_megatron.batch.targets import build_targets
from sppo_megatron.config import JudgeConfig, RewardConfig
from sppo_megatron.objective.sppo import Sppo
from sppo_megatron.rewards.registry import build_scorer
from sppo_megatron.rewards.scorer import Outcome, ScoringError, score_over_ranks, with_rewards
from sppo_megatron.types import Group, Prompt, Response
from tests.unit.rewards.endpoint import Endpoint, completion

IDS = np.array([1], dtype=np.int32)


def make_group(*texts: str, answer: str | None = "7", preference=None) -> Group:
    return Group(Prompt(0, IDS, "3 + 4", answer), [Response(IDS, text, reward=0.5) for text in texts], preference)


OPINIONS = """
def of_two(prompt, first, second, answer):
    if "x" in (first, second):
        raise RuntimeError("no opinion")
    return 1.0

def of_one(prompt, response, answer):
    if response == "x":
        raise RuntimeError("no opinion")
    return 1.0
"""


def test_scalar_rewards_leave_no_old_preference():
    """A file's preference says that the wrong answer wins; scored anew by `numeric`, the right one is reinforced."""
    wrong_wins = np.array([[0.5, 0.0], [1.0, 0.5]])
    old = make_group("7", "8", preference=wrong_wins)
    [new] = score_over_ranks(build_scorer(RewardConfig(kind="numeric")), [old])
    assert new.preference is None and [response.reward for response in new.responses] == [1.0, 0.0]
    right, wrong = build_targets([new], Sppo(eta=1.0, reward="win_rate")).target
    assert right > 0 > wrong
    right, wrong = build_targets([old], Sppo(eta=1.0, reward="win_rate")).target
    assert right < 0 < wrong, "the old preference would have done the opposite"
    assert old.preference is wrong_wins and [response.reward for response in old.responses] == [0.5, 0.5]


def test_preferences_leave_no_old_rewards():
    endpoint = Endpoint(lambda _, message: completion("A" if message.index("right") < message.index("wrong") else "B"))
    judge = build_scorer(RewardConfig(kind="judge", judge=JudgeConfig(urls=[endpoint.url])))
    old = make_group("right", "wrong")
    old = with_rewards(old, [Outcome(0.0, False, "old"), Outcome(9.0, True)])
    [new] = score_over_ranks(judge, [old])
    endpoint.close()
    assert new.preference is not None and new.preference[0, 1] == 1.0
    assert [(r.reward, r.correct, r.error) for r in new.responses] == [(0.75, None, None), (0.25, None, None)]
    assert [response.reward for response in old.responses] == [0.0, 9.0]


@pytest.mark.parametrize(
    ("kind", "function", "groups", "what"),
    [
        # 2 of 6 questions: x against y in both orders; a group of equal texts asks nothing
        ("pairwise_function", "of_two", [("a", "b"), ("c", "d"), ("x", "y")], "failed on 2 of 6 questions"),
        ("pairwise_function", "of_two", [("x", "y"), ("z", "z")], "answered none of the questions"),
        ("function", "of_one", [("a", "b", "x")], "failed on 1 of 3 responses"),
        ("function", "of_one", [("x", "x")], "scored none of the responses"),
    ],
)
def test_too_many_failures_end_it(
    tmp_path, monkeypatch, kind: str, function: str, groups: Sequence[Sequence[str]], what: str
):
    (tmp_path / "opinions.py").write_text(OPINIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("opinions", None)
    config = RewardConfig(kind=kind, function=f"opinions:{function}", num_workers=1)
    scorer = build_scorer(config)
    texts = [make_group(*texts) for texts in groups]
    try:
        with pytest.raises(ScoringError, match="no opinion") as raised:
            score_over_ranks(scorer, texts, config.max_failed_share)
        assert raised.value.what == what
        assert len(score_over_ranks(scorer, texts, 1.0)) == len(groups)
        if "none" not in what:
            assert len(score_over_ranks(scorer, texts, 0.34)) == len(groups)
    finally:
        scorer.close()


@pytest.mark.parametrize(
    ("status", "reply"),
    [(429, {"error": {"code": "insufficient_quota"}}), (401, {"error": "revoked"}), (402, {})],
)
def test_a_judge_that_refuses_us_is_no_tie(status: int, reply: dict):
    """One question of twelve: it would not be too many failures, but more of them are certain to follow."""
    endpoint = Endpoint(lambda self, _: (status, reply) if len(self.requests) == 12 else completion("A"))
    config = RewardConfig(kind="judge", judge=JudgeConfig(urls=[endpoint.url], concurrency=1))
    with pytest.raises(ScoringError, match=f"answered {status}"):
        score_over_ranks(build_scorer(config), [make_group("a", "b", "c", "d")], 1.0)
    endpoint.close()
