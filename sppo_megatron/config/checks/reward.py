"""The reward's keys together, and with the objective."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from sppo_megatron.config import Config, RewardConfig
from sppo_megatron.config.checks.values import PREFERENCE_KINDS, SCALAR_KINDS

_SAYS_WHAT_IS_CORRECT = ("exact_match", "numeric", "character_share", "math_verify", "function", "mixture")
_ENTRY_KEYS = {"kind", "weight", "function"}


def check_reward(config: Config, generates: bool) -> Iterator[str]:
    """generates: whether responses are sampled; False if stored ones are read."""
    reward, objective = config.reward, config.objective
    yield from check_scorer(reward)
    if reward.kind in PREFERENCE_KINDS and objective.reward != "win_rate":
        yield (
            f"reward.kind={reward.kind} gives preferences between responses: set objective.reward=win_rate, "
            "as objective=sppo_win_rate does"
        )
    if reward.kind == "none" and objective.pairwise != "spin":
        yield "reward.kind=none is for objective.pairwise=spin, whose winners are given: choose a reward"
    k = config.rollout.num_samples_per_prompt
    if reward.kind in PREFERENCE_KINDS and generates and k < 2:
        yield f"reward.kind={reward.kind} compares responses: rollout.num_samples_per_prompt={k} must be at least 2"
    if objective.length_reward_weight and reward.kind not in _SAYS_WHAT_IS_CORRECT:
        yield (
            f"objective.length_reward_weight={objective.length_reward_weight:g} needs to know which responses are "
            f"correct, and reward.kind={reward.kind} doesn't say: set it to 0"
        )


def check_scorer(reward: RewardConfig) -> Iterator[str]:
    """What can be said of the reward alone."""
    if reward.kind == "judge":
        yield from _check_urls(reward.judge.urls)
    kinds = [reward.kind, *(entry.get("kind") for entry in reward.mixture)]
    if ("reward_model" in kinds or "pairwise_model" in kinds) and reward.model.path is None:
        yield "a reward model needs reward.model.path: a local folder or hub id in Hugging Face format"
    if (reward.kind == "mixture") != bool(reward.mixture):
        yield "reward.kind=mixture and reward.mixture=[{kind: ..., weight: ...}] belong together: give both or neither"
    for place, entry in enumerate(reward.mixture):
        for problem in _entry_problems(entry):
            yield f"reward.mixture[{place}]: {problem}"


def _check_urls(urls: list[str]) -> Iterator[str]:
    if not urls:
        yield "reward.kind=judge needs reward.judge.urls=[http://host:port, ...] of an OpenAI-compatible server"
    for url in urls:
        if not re.fullmatch(r"https?://[^/\s]+/?", url):
            yield f"reward.judge.urls holds {url!r}: each is http://host:port, without a path"
    if len(set(urls)) < len(urls):
        yield "reward.judge.urls names a server twice"


def _entry_problems(entry: dict[str, Any]) -> Iterator[str]:
    kind, weight = entry.get("kind"), entry.get("weight")
    if kind in PREFERENCE_KINDS:
        yield f"{kind} gives preferences, which can't be added to rewards: mix only {', '.join(SCALAR_KINDS)}"
    elif kind not in SCALAR_KINDS:
        yield f"kind={kind!r} is not known: choose one of {', '.join(SCALAR_KINDS)}"
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        yield f"weight={weight!r} must be a finite number"
    if (kind == "function") != (entry.get("function") is not None):
        yield "kind: function and function: module:name belong together: give both or neither"
    if unknown := sorted(set(entry) - _ENTRY_KEYS):
        yield f"{', '.join(unknown)} is not known: an entry has kind, weight and function"
