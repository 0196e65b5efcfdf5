"""Rewards, and whether their keys go together and with the objective."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from annotated_types import Interval

from sppo_megatron.config.keys import AtLeastOne, Finite, Free, NextIteration, NotNegative, Positive, UserPath
from sppo_megatron.config.objective import learns_from_humans
from sppo_megatron.config.precision import Dtype

if TYPE_CHECKING:
    from sppo_megatron.config.schema import Config

# Rewards of one response, and preferences between two; a mixture is of the former.
ScalarKind = Literal["exact_match", "numeric", "character_share", "math_verify", "function", "reward_model"]
PreferenceKind = Literal["judge", "pairwise_model", "pairwise_function"]
SCALAR_KINDS, PREFERENCE_KINDS = get_args(ScalarKind), get_args(PreferenceKind)
_SAYS_WHAT_IS_CORRECT = ("exact_match", "numeric", "character_share", "math_verify", "function", "mixture")
_ENTRY_KEYS = {"kind", "weight", "function"}


@dataclass
class JudgeConfig:
    """A pairwise judge behind an OpenAI-compatible endpoint (reward.kind=judge)."""

    urls: Free[list[str]] = field(default_factory=list)
    "Each server's http://host:port, or https://host/api, with or without /v1."
    model: NextIteration[str | None] = None
    "Name of the model that they serve; null = the only one."
    api_key_env: Free[str] = "JUDGE_API_KEY"
    "Environment variable that holds the API key, which is written nowhere."
    template: NextIteration[UserPath | None] = None
    "File of the question with {prompt}, {first} and {second}; null = a built-in one."
    logprobs: NextIteration[bool] = True
    "Ask for the log-probs of the answer."
    max_tokens: NextIteration[AtLeastOne[int]] = 1
    "Of the answer."
    request: NextIteration[dict[str, Any]] = field(default_factory=dict)
    "More fields of the request, by the endpoint's names."
    concurrency: Free[AtLeastOne[int]] = 32
    "Requests under way on one server from each rank."
    timeout_s: Free[Positive[float]] = 60.0
    "Seconds for one request."
    retries: Free[NotNegative[int]] = 3
    "Attempts after the first."
    backoff_s: Free[NotNegative[float]] = 1.0
    "Seconds before the second attempt, doubling from one to the next."
    cache_path: Free[UserPath | None] = None
    "File that keeps the answers; null = none."


@dataclass
class RewardModelConfig:
    """A Hugging Face sequence classifier with one output on every rank (reward.kind=reward_model | pairwise_model)."""

    path: NextIteration[UserPath | None] = None
    "Local folder or hub id."
    dtype: NextIteration[Dtype] = "bf16"
    "Of its weights and activations."
    batch_size: Free[AtLeastOne[int]] = 16
    "Texts at a time."
    max_length: NextIteration[AtLeastOne[int] | None] = None
    "Tokens; longer texts aren't scored. null = all are."
    template: NextIteration[UserPath | None] = None
    "The pairwise model's text: a file with {prompt}, {first} and {second}; null = a built-in one."


@dataclass
class RewardConfig:
    """What scores a response.

    A reward that raises, or takes longer than timeout_s, costs its own response `default` and an error record; a
    preference that fails leaves its pair a tie.
    """

    kind: NextIteration[ScalarKind | PreferenceKind | Literal["mixture", "none"]] = "exact_match"
    """judge, pairwise_model and pairwise_function give preferences between responses (objective.reward=win_rate), the
    others a reward of each. none: every reward is 0, for objective.pairwise=spin."""
    function: NextIteration[str | None] = None
    """`module:name` for the kinds function, f(prompt, response, answer), and pairwise_function, f(prompt, first,
    second, answer) -> probability in [0, 1] that the first wins. It may ask for more by name: docs/rewards.md."""
    timeout_s: Free[Positive[float]] = 10.0
    "Seconds for one response."
    default: NextIteration[Finite[float]] = 0.0
    "Reward of a response that couldn't be scored."
    max_failed_share: Free[Annotated[float, Interval(ge=0, le=1)]] = 0.2
    """If more than this share of an iteration's questions failed, or of its responses for a reward of each, the run
    saves and stops; 1 = never."""
    num_workers: Free[AtLeastOne[int]] = 2
    "Worker processes on each rank."
    mixture: NextIteration[list[dict[str, Any]]] = field(default_factory=list)
    "Entries {kind: ..., weight: ..., function: ...}, whose weighted rewards are added (kind=mixture)."
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    model: RewardModelConfig = field(default_factory=RewardModelConfig)


def check_reward(config: Config, generates: bool) -> Iterator[str]:
    """generates: whether responses are sampled; False if stored ones are read."""
    reward, objective = config.reward, config.objective
    yield from check_scorer(reward)
    if reward.kind in PREFERENCE_KINDS and objective.reward != "win_rate":
        yield (
            f"reward.kind={reward.kind} gives preferences between responses: set objective.reward=win_rate, "
            "as objective=sppo_win_rate does"
        )
    if reward.kind == "none" and not learns_from_humans(objective):
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
    if (reward.kind in ("function", "pairwise_function")) != (reward.function is not None):
        yield (
            "reward.kind=function or pairwise_function and reward.function=module:name belong together: "
            "give both or neither"
        )
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
        if not re.fullmatch(r"https?://[^/\s?#]+(/[^\s?#]*)?", url):
            yield f"reward.judge.urls holds {url!r}: each is http://host:port or https://host/path"
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
