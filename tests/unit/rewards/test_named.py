"""Each prompt's responses are scored by the reward that its record or its source names, and by no other."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from sppo_megatron.batch.targets import build_targets
from sppo_megatron.config import Config, DataConfig, RewardConfig
from sppo_megatron.config.sources import training_sources, with_rewards_of_sources
from sppo_megatron.data.prompts import load_prompts
from sppo_megatron.data.sources import load_sources
from sppo_megatron.errors import ConfigError
from sppo_megatron.objective.registry import build_objective
from sppo_megatron.rewards.choices import check_choices, prompt_reader
from sppo_megatron.rewards.named import scorer_of
from sppo_megatron.rewards.registry import build_scorer, check_reward
from sppo_megatron.rewards.scorer import ScoringError, score_over_ranks, with_means
from sppo_megatron.types import Group, Prompt, Response
from tests.unit.data.test_prompts import make_tokenizer

NAMED = {"exact": {"kind": "exact_match"}, "share": {"kind": "character_share"}}


def make_group(rewards, *texts, answer="1284", extra=None):
    responses = [Response(np.zeros(len(text), np.int32), text) for text in texts]
    return Group(Prompt(0, np.array([5], np.int32), "p", answer, extra=extra or {}, rewards=rewards), responses)


def make_config(named, reward=(), **data):
    config = Config(reward=RewardConfig(kind="named", named=named, **dict(reward)), data=DataConfig(**data))
    config.objective.reward = "win_rate" if any("pairwise" in str(entry) for entry in named.values()) else "reward"
    return config


def rewards_of(group):
    return [response.reward for response in group.responses]


def test_each_group_by_its_own_names():
    groups = [
        make_group({"exact": 1.0}, "1284", "1200"),
        make_group({"share": 1.0}, "1284", "1200", "x"),
        make_group({"exact": 2.0, "share": -0.5}, "1284", "1200"),
        make_group({"share": 1.0}, "1200", extra={"which": [{"name": "exact", "weight": 3}]}),
    ]
    scorer = build_scorer(RewardConfig(kind="named", named=NAMED, key="which"))
    scored = score_over_ranks(scorer, groups)
    assert [rewards_of(group) for group in scored] == [[1, 0], [1, 0.5, 0], [1.5, -0.25], [0]]
    assert [r.correct for group in scored for r in group.responses] == [True, False] * 2 + [False, True, False, False]
    assert with_means(scorer.metrics) == pytest.approx(
        {"named_reward_mean/exact": 2 / 5, "named_reward_mean/share": (1 + 0.5 + 0 + 1 + 0.5) / 5}
    )


@pytest.mark.parametrize("rewards", [None, {}, {"exact": 1.0, "gone": 1.0}])
def test_a_stored_group_that_names_no_reward_of_this_run_has_an_error(rewards):
    scorer = build_scorer(RewardConfig(kind="named", named=NAMED))
    with pytest.raises(ScoringError, match="has exact, share"):
        score_over_ranks(scorer, [make_group(rewards, "a")], 0.5)


def test_preferences_and_rewards_of_each_in_one_run(tmp_path, monkeypatch):
    """With win rates a group has those of the function that compares, another those of Bradley-Terry on its rewards."""
    (tmp_path / "shorter.py").write_text(
        "def wins(prompt, first, second):\n    return float(len(first) < len(second))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    named = {"style": {"kind": "pairwise_function", "function": "shorter:wins", "num_workers": 1}, **NAMED}
    config = make_config(named, {"key": "which"})
    assert list(check_reward(config, True)) == [] == list(check_choices(config, True))
    scorer = build_scorer(config.reward)
    try:
        groups = score_over_ranks(
            scorer, [make_group({"style": 1.0}, "a", "bb"), make_group({"exact": 1.0}, "1284", "2")]
        )
    finally:
        scorer.close()
        sys.modules.pop("shorter", None)
    np.testing.assert_array_equal(groups[0].preference, [[0.5, 1], [0, 0.5]])
    targets = build_targets(groups, build_objective({"name": "sppo", "eta": 1.0, "reward": "win_rate"}))
    odds = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(targets.win_rates, [0.75, 0.25, (0.5 + odds) / 2, (1.5 - odds) / 2])
    assert scorer.metrics["pairwise_function_questions"] == 2
    config.objective.reward = "reward"
    [said] = check_reward(config, True)
    assert "reward.kind=pairwise_function gives preferences" in said


def test_an_evaluation_has_the_scorers_that_its_prompts_name():
    named = {"style": {"kind": "pairwise_function", "function": f"{__name__}:longer_wins"}, **NAMED}
    scorer = build_scorer(RewardConfig(kind="named", named=named, key="which"))
    style, exact, other = (make_group(rewards, "a").prompt for rewards in ({"style": 1}, {"exact": 1}, {"exact": 1}))
    assert not scorer.gives_preferences and scorer_of([], scorer) is scorer
    assert scorer_of([style], scorer).gives_preferences
    assert not scorer_of([exact, other], scorer).gives_preferences
    with pytest.raises(ConfigError, match=r"compare responses \(style\) and others that don't \(exact\)"):
        scorer_of([style, exact], scorer)
    plain = build_scorer(RewardConfig())
    assert scorer_of([style], plain) is plain


def longer_wins(prompt, first, second):
    """A preference that can be imported."""
    return float(len(first) > len(second))


def source(name, **entry):
    return {"name": name, "path": ".", **entry}


@pytest.mark.parametrize(
    ("named", "reward", "data", "said"),
    [
        ({"a": {"kind": "nope"}}, {"key": "k"}, {}, ["reward.named.a: reward.kind='nope' is not known"]),
        ({"a": {"kind": "named"}}, {"key": "k"}, {}, ["reward.named.a: kind=named can't hold itself"]),
        ({"a": {"kind": "numeric", "timeout_s": 0}}, {"key": "k"}, {}, ["reward.named.a.timeout_s=0 must be above 0"]),
        (
            {"a": {"kind": "judge", "judge": {"url": 1}}},
            {"key": "k"},
            {},
            ["reward.named.a.judge.url is not a known key"],
        ),
        ({"a": {"kind": "judge"}}, {"key": "k"}, {}, ["reward.named.a: reward.kind=judge needs reward.judge.urls"]),
        ({"a": {"kind": "numeric", "max_failed_share": 1}}, {"key": "k"}, {}, ["max_failed_share can't differ"]),
        ({"a": {"timeout_s": 1}}, {"key": "k"}, {}, ["reward.named.a={'timeout_s': 1} must be {kind: ..., ...}"]),
        ({"a": {"kind": "function"}}, {"key": "k"}, {}, ["reward.named.a: reward.kind=function"]),
        (NAMED, {}, {"train_path": "."}, ["data.train_path says nothing of its reward", "set reward.key"]),
        (
            NAMED,
            {},
            {"sources": [source("s"), source("t", reward="gone"), source("u", reward=[{"name": "exact"}])]},
            ["data.sources.s says nothing of its reward", "data.sources.t: reward.named has no gone: choose of exact"],
        ),
        (
            {**NAMED, "style": {"kind": "pairwise_function", "function": "m:f"}},
            {},
            {"sources": [source("s", reward=[{"name": "style"}, {"name": "exact"}])]},
            ["style compares responses, which can't be weighted or added"],
        ),
        (NAMED, {}, {"sources": [source("exact", reward={"kind": "numeric"})]}, ["define the reward exact 2 times"]),
    ],
)
def test_one_message_for_each_mistake(named, reward, data, said):
    config = make_config(named, reward, **data)
    found = [*check_reward(config, True), *check_choices(config, True)]
    assert len(found) == len([text for text in said if text.startswith(("data", "reward"))] or said)
    for text in said:
        assert text in "\n".join(found)


def test_a_source_that_names_a_reward_needs_names():
    config = Config(data=DataConfig(sources=[source("s", reward="math")]))
    assert list(check_choices(config, True)) == [
        "data.sources.s: reward names one of reward.named: set reward.kind=named and reward.named"
    ]


def test_what_records_choose_and_every_one_that_does_not_at_once(tmp_path):
    records = [
        {"prompt": "a", "answer": "4", "which": "number"},
        {"prompt": "b", "which": "brief"},
        {"prompt": "c", "which": [{"name": "number", "weight": 0.5}, {"name": "brief"}], "answer": 7},
        {"prompt": "d"},
        {"prompt": "e", "which": "nothing"},
        {"prompt": "f", "which": "number"},
        {"prompt": "g", "which": "number", "answer": "many"},
        {"prompt": "h", "which": 7},
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    named = {"number": {"kind": "numeric"}, "brief": {"kind": "function", "function": "m:f"}}
    accept = prompt_reader(RewardConfig(kind="named", named=named, key="which"))
    with pytest.raises(ConfigError) as error:
        load_prompts(path, make_tokenizer(), DataConfig(), accept=accept)
    for said in (
        "5 bad lines",
        "line 4: no key 'which' (reward.key); the keys beside prompt and answer are []",
        "line 5: 'which' (reward.key): reward.named has no nothing: choose of number, brief",
        "line 6: no answer (data.answer_key), which its reward numeric compares",
        "line 7: the answer 'many' is as a whole no number",
        "line 8: 'which' (reward.key): 7 is no name of a reward",
    ):
        assert said in str(error.value)
    path.write_text("".join(json.dumps(record) + "\n" for record in records[:3]))
    prompts = load_prompts(path, make_tokenizer(), DataConfig(), accept=accept)
    assert [prompt.rewards for prompt in prompts] == [{"number": 1}, {"brief": 1}, {"number": 0.5, "brief": 1}]


def test_what_sources_choose(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"prompt": "a", "answer": "4"}\n')
    named = {"number": {"kind": "numeric"}}
    entries = [
        {"name": "s", "path": str(path), "reward": "number"},
        {"name": "t", "path": str(path), "reward": {"kind": "exact_match"}},
    ]
    config = make_config(named, sources=entries)
    assert [*check_reward(config, True), *check_choices(config, True)] == []
    reward = with_rewards_of_sources(config.reward, config.data)
    loaded = load_sources(
        training_sources(config.data),
        make_tokenizer(),
        require_answer=False,
        accept=lambda source: prompt_reader(reward, source),
        max_response_length=9,
    )
    assert [each.prompts[0].rewards for each in loaded] == [{"number": 1.0}, {"t": 1.0}]
    groups = [Group(each.prompts[0], [Response(np.zeros(1, np.int32), "It is 4")]) for each in loaded]
    assert [rewards_of(group) for group in build_scorer(reward).score(groups)] == [[1.0], [0.0]]
