"""Rewards. Whether their keys go together says the registry of rewards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Interval

from sppo_megatron.config.keys import AtLeastOne, Finite, Free, NextIteration, NotNegative, Positive, UserPath
from sppo_megatron.config.precision import Dtype


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
class RuleConfig:
    """What the kinds regex, json_schema, tags and length go by."""

    pattern: NextIteration[str | None] = None
    """A regular expression of Python, looked for in the response; what a group named `answer` found last must be the
    prompt's answer (kind=regex)."""
    schema: NextIteration[dict[str, Any]] = field(default_factory=dict)
    "JSON schema, draft 2020-12 (kind=json_schema)."
    tags: NextIteration[list[str]] = field(default_factory=lambda: ["think", "answer"])
    "Names of the tags that a response consists of, in their order (kind=tags)."
    min_tokens: NextIteration[NotNegative[int]] = 0
    "Shortest response of reward 1 (kind=length)."
    max_tokens: NextIteration[AtLeastOne[int] | None] = None
    "Longest response of reward 1; null = any (kind=length)."
    margin: NextIteration[NotNegative[int]] = 0
    "Tokens beyond either over which the reward falls to 0 (kind=length)."


@dataclass
class CodeConfig:
    """Where a response's program runs on the prompt's tests (reward.kind=code)."""

    sandbox: NextIteration[str | None] = None
    """`module:name` of f(program, cases, seconds) -> a bool for each case, which runs them elsewhere; null = in
    processes with limits on this machine, which are no security boundary: docs/rewards.md."""
    memory_mb: NextIteration[Annotated[int, Ge(64)]] = 1024
    "MiB of memory that a program may have."
    partial_credit: NextIteration[bool] = False
    "The reward is the share of tests that pass, instead of 1 if all do."


@dataclass
class RewardConfig:
    """What scores a response.

    A reward that raises, or takes longer than timeout_s, costs its own response `default` and an error record; a
    preference that fails leaves its pair a tie.
    """

    kind: NextIteration[str] = "exact_match"
    """exact_match, numeric, choice, character_share, math_verify, regex, json_schema, tags, length, code, function
    and reward_model give a reward of each response;
    judge, pairwise_model and pairwise_function give preferences between responses (objective.reward=win_rate).
    mixture: the weighted sum of several. named: each prompt's own, of reward.named. none: every reward is 0, for
    objective.pairwise=spin."""
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
    named: NextIteration[dict[str, Any]] = field(default_factory=dict)
    """Rewards by name, {NAME: {kind: ..., ...}}; keys that an entry doesn't have are as they are here (kind=named)."""
    key: NextIteration[str | None] = None
    """Column of a record that says which named reward scores its responses: a name, or [{name: ..., weight: ...}, ...];
    before what the record's source says."""
    opponents: NextIteration[UserPath | None] = None
    """Rollout file with answers to the same prompts, of an earlier policy or a fixed set: the reward of a response is
    then how often it beats them, and no more a preference within its group; null = none."""
    overlap: NextIteration[str | None] = None
    """Draws the preference of responses that mean the same to a tie: same_answer, if they end on the same answer, or
    `module:name` of f(prompt, first, second) -> how far they mean the same, in [0, 1]; null = no."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    model: RewardModelConfig = field(default_factory=RewardModelConfig)
    rule: RuleConfig = field(default_factory=RuleConfig)
    code: CodeConfig = field(default_factory=CodeConfig)
