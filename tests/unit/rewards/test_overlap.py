"""S-SPPO's gate: answers that mean the same are ties, by the definition in plain loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sppo_megatron.config import RewardConfig
from sppo_megatron.config.compose import compose_config
from sppo_megatron.errors import ConfigError
from sppo_megatron.objective import check_preference, gated_preference
from sppo_megatron.rewards.registry import build_scorer, check_reward
from sppo_megatron.types import Group, Prompt, Response

JUDGE = RewardConfig(kind="pairwise_function", function="tests.unit.rewards.test_overlap:sure_of_the_longer")
TOKENS = np.array([1], np.int32)


def sure_of_the_longer(prompt: str, first: str, second: str, answer: str | None) -> float:
    """Leans to the first place, too."""
    return 0.98 if len(first) > len(second) else 0.1


def shared_letters(prompt: str, first: str, second: str) -> float:
    """Not symmetric: the share of the first one's letters that the second has."""
    return sum(letter in second for letter in first) / len(first)


def fails_on_x(prompt: str, first: str, second: str) -> float:
    if "x" in first + second:
        raise RuntimeError("no embedding")
    return 1.5 if "y" in first else 0.5


def scored(texts: list[str], overlap: str | None, answer: str | None = None) -> tuple[Group, dict[str, float]]:
    scorer = build_scorer(replace(JUDGE, overlap=overlap))
    try:
        (group,) = scorer.score([Group(Prompt(0, TOKENS, "?", answer), [Response(TOKENS, text) for text in texts])])
    finally:
        scorer.close()
    return group, scorer.metrics


def definition(texts: list[str], overlap) -> tuple[list[list[float]], list[float]]:
    """Preferences and win rates, pair by pair."""
    k = len(texts)
    matrix = [[0.5] * k for _ in range(k)]
    for i in range(k):
        for j in range(k):
            if i != j and texts[i] != texts[j]:
                ahead, behind = (sure_of_the_longer("", texts[a], texts[b], None) for a, b in ((i, j), (j, i)))
                o = (overlap("", texts[i], texts[j]) + overlap("", texts[j], texts[i])) / 2
                matrix[i][j] = 0.5 + (1 - o) * ((ahead + 1 - behind) / 2 - 0.5)
    return matrix, [(sum(row) - row[i] + 0.5) / k for i, row in enumerate(matrix)]


def test_preferences_and_win_rates_are_the_definitions():
    texts = ["abc", "abcd", "xyz", "ab", "dcba!"]
    group, metrics = scored(texts, "tests.unit.rewards.test_overlap:shared_letters")
    matrix, rates = definition(texts, shared_letters)
    np.testing.assert_allclose(group.preference, matrix, atol=1e-12)
    np.testing.assert_allclose([response.reward for response in group.responses], rates, atol=1e-12)
    check_preference(torch.from_numpy(group.preference), tolerance=1e-12)
    assert metrics["overlap_pairs"] == 10 and metrics["pairwise_function_questions"] == 20
    both = [(shared_letters("", a, b) + shared_letters("", b, a)) / 2 for i, a in enumerate(texts) for b in texts[:i]]
    assert metrics["overlap_sum"] == pytest.approx(sum(both))


def test_the_same_final_answer_is_a_tie():
    texts = ["It is 12", "The sum of five and seven is \\boxed{12}", "13"]
    sure, _ = scored(texts, None, answer="12")
    gated, _ = scored(texts, "same_answer", answer="12")
    assert sure.preference[1, 0] == pytest.approx(0.94) and gated.preference[1, 0] == 0.5
    assert gated.preference[1, 2] == sure.preference[1, 2] and gated.preference[0, 2] == sure.preference[0, 2]


def test_an_overlap_that_cannot_be_told_is_none_and_an_error():
    texts = ["aaaa", "bb", "x", "y"]
    group, _ = scored(texts, "tests.unit.rewards.test_overlap:fails_on_x")
    sure, _ = scored(texts, None)
    assert group.preference[0, 1] - 0.5 == pytest.approx((sure.preference[0, 1] - 0.5) / 2)
    assert group.preference[0, 2] == sure.preference[0, 2] and "no embedding" in str(group.responses[2].error)
    assert "not a probability" in str(group.responses[3].error) or "no embedding" in str(group.responses[3].error)


def test_the_maths_refuses_what_is_no_overlap():
    preference = torch.tensor([[0.5, 0.9], [0.1, 0.5]], dtype=torch.float64)
    with pytest.raises(ValueError, match="symmetric"):
        gated_preference(preference, torch.tensor([[1.0, 0.2], [0.3, 1.0]]))
    with pytest.raises(ValueError, match="overlap"):
        gated_preference(preference, torch.full((2, 2), 1.5))
    with pytest.raises(ValueError, match="expected shape"):
        gated_preference(preference, torch.ones(3, 3))


def test_what_is_refused():
    with pytest.raises(ConfigError, match=r"reward.overlap='nearly' is not known: choose same_answer, or module:name"):
        build_scorer(replace(JUDGE, overlap="nearly"))
    config, _ = compose_config(["model.hf_path=org/model", "reward=numeric", "reward.overlap=same_answer"])
    assert any("reward.overlap is for rewards that compare" in problem for problem in check_reward(config, True))
