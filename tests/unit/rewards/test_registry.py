"""Every mistake with a reward has a message that names the key and the way out; one entry adds a reward."""

from __future__ import annotations

import pytest

from sppo_megatron.config import Config, RewardConfig
from sppo_megatron.rewards.mixture import NoReward
from sppo_megatron.rewards.registry import REWARDS, RewardKind, build_scorer, check_answer, check_reward

URLS = ["http://127.0.0.1:8000", "https://judge.example/"]


def problems(objective=(), rollout=(), judge=(), model=(), **reward):
    config = Config()
    for group, values in (
        (config.objective, objective),
        (config.rollout, rollout),
        (config.reward.judge, judge),
        (config.reward.model, model),
        (config.reward, reward),
    ):
        for key, value in dict(values).items():
            assert hasattr(group, key)
            setattr(group, key, value)
    return list(check_reward(config, generates=config.rollout.engine != "replay"))


def entry(**values):
    return {"kind": "mixture", "mixture": [{"kind": "numeric", "weight": 1}, values]}


WIN_RATE = {"reward": "win_rate"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kind": "judge", "judge": {"urls": URLS}, "objective": WIN_RATE},
        {"kind": "pairwise_model", "model": {"path": "here"}, "objective": WIN_RATE},
        {"kind": "judge", "judge": {"urls": URLS}, "objective": WIN_RATE, "rollout": {"engine": "replay"}},
        {"kind": "pairwise_function", "function": "module:name", "objective": WIN_RATE},
        {"kind": "reward_model", "model": {"path": "here"}},
        {"kind": "reward_model", "model": {"path": "here"}, "objective": WIN_RATE},
        entry(kind="function", function="module:name", weight=-0.5),
        {**entry(kind="reward_model", weight=2), "model": {"path": "here"}, "objective": {"length_reward_weight": 0.1}},
    ],
    ids=str,
)
def test_good(settings):
    assert problems(**settings) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "judge", "objective": WIN_RATE}, ["reward.judge.urls=[http://host:port"]),
        (
            {"kind": "judge", "judge": {"urls": ["http://a/v1#x"]}, "objective": WIN_RATE},
            ["'http://a/v1#x'", "http://host:port or https://host/path"],
        ),
        (
            {"kind": "judge", "judge": {"urls": ["http://a/v1?key=x"]}, "objective": WIN_RATE},
            ["holds a password or a key", "reward.judge.api_key_env"],
        ),
        ({"kind": "judge", "judge": {"urls": [URLS[0]] * 2}, "objective": WIN_RATE}, ["names a server twice"]),
        ({"kind": "judge", "judge": {"urls": URLS}}, ["reward.kind=judge", "objective.reward=win_rate"]),
        (
            {
                "kind": "judge",
                "judge": {"urls": URLS},
                "objective": WIN_RATE,
                "rollout": {"num_samples_per_prompt": 1},
            },
            ["rollout.num_samples_per_prompt=1 must be at least 2"],
        ),
        (
            {"kind": "reward_model", "model": {"path": "here"}, "objective": {"length_reward_weight": 0.1}},
            ["objective.length_reward_weight=0.1", "reward.kind=reward_model doesn't say", "set it to 0"],
        ),
        ({"kind": "reward_model"}, ["reward.model.path", "hub id"]),
        ({"kind": "pairwise_model", "objective": WIN_RATE}, ["reward.model.path"]),
        ({"kind": "pairwise_function", "function": "module:name"}, ["objective.reward=win_rate"]),
        ({"kind": "mixture"}, ["reward.mixture=[", "both or neither"]),
        ({"mixture": [{"kind": "numeric", "weight": 1}]}, ["reward.kind=mixture", "both or neither"]),
        (entry(kind="judge", weight=1), ["reward.mixture[1]: judge gives preferences", "can't be added", "mix only"]),
        (entry(kind="mixture", weight=1), ["reward.mixture[1]: kind='mixture' is not known", "choose one of"]),
        (entry(weight=1), ["kind=None is not known"]),
        (entry(kind="numeric"), ["reward.mixture[1]: weight=None must be a finite number"]),
        (entry(kind="numeric", weight=float("nan")), ["weight=nan must be a finite number"]),
        (entry(kind="function", weight=1), ["function: module:name", "both or neither"]),
        (entry(kind="numeric", weight=1, scale=3), ["reward.mixture[1]: scale is not known"]),
        (entry(kind="reward_model", weight=1), ["reward.model.path"]),
    ],
    ids=str,
)
def test_bad(settings, said):
    [message] = problems(**settings)
    for text in said:
        assert text in message


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ({"kind": "exact"}, "reward.kind='exact' is not known: choose one of exact_match, numeric"),
        (
            {"kind": "mixture", "mixture": [{"kind": "reward_model", "weight": 1.0}], "model": {"path": "here"}}
            | {"objective": {"length_reward_weight": 0.1}},
            "reward.kind=mixture doesn't say",
        ),
    ],
    ids=str,
)
def test_what_a_kind_says_of_itself_is_asked(reward, said):
    [message] = problems(**reward)
    assert said in message


def test_one_entry_adds_a_kind(monkeypatch):
    """It is checked, mixed, built and asked about answers by what its entry says."""

    def check(reward):
        if reward.default:
            yield "louder takes no default"

    def refuse(answer):
        raise ValueError(f"not {answer}")

    built = []
    louder = RewardKind(
        "louder",
        lambda reward, decode: built.append(reward) or NoReward(),
        takes="function",
        can_be_mixed=True,
        says_correct=True,
        check=check,
        check_answer=refuse,
    )
    monkeypatch.setitem(REWARDS, "louder", louder)
    mixed = entry(kind="louder", function="m:f", weight=1)
    assert problems(**mixed, objective={"length_reward_weight": 0.1}) == []
    assert problems(**mixed, default=1.0) == ["reward.mixture[1]: louder takes no default"]
    [missing] = problems(kind="louder")
    assert missing.startswith("reward.kind=function or pairwise_function or louder and reward.function=module:name")
    reward = RewardConfig(**mixed)
    build_scorer(reward)
    assert [part.function for part in built] == ["m:f"]
    with pytest.raises(ValueError, match="not 7"):
        check_answer(reward, "7")
