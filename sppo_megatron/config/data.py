"""Where the prompts come from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval

from sppo_megatron.config.keys import AtLeastOne, Fixed, Free, NextIteration, Positive, UserPath


@dataclass
class DataConfig:
    """Records of prompts. A path is a JSONL file, a Parquet file or a folder of them, a folder saved by Hugging Face
    `datasets`, or a hub id (org/name or org/name:configuration)."""

    train_path: Fixed[UserPath | None] = None
    "Prompts to train on."
    eval_path: Free[UserPath | None] = None
    "Prompts to evaluate on; null = no evaluation."
    sources: NextIteration[list[dict[str, Any]]] = field(default_factory=list)
    """Instead of train_path: [{name: ..., path: ..., weight: ...}, ...], mixed by their weights. weight is a number, or
    a list of numbers by iteration; repeat: false ends a source after one epoch; reward names one of reward.named or
    several, or is one; split, format, prompt_key, answer_key, response_key, apply_chat_template and max_prompt_length
    are those of data unless given."""
    eval_sources: Free[list[dict[str, Any]]] = field(default_factory=list)
    "Instead of eval_path: the same entries, without weights. Each has its metrics, as eval_reward_mean/NAME."
    adaptive: NextIteration[Annotated[int, Interval(ge=0, le=16)]] = 0
    """Pass over a prompt whose last c groups had no spread of rewards, being always solved or never, for 2^c − 1 of its
    turns, c at most this; 0 = never."""
    train_split: Fixed[str | None] = None
    "Which split of data that has several; null = train."
    eval_split: Free[str | None] = None
    "Which split of data that has several; null = test."
    format: Fixed[Literal["verl", "trl", "nemo_rl", "openai"] | None] = None
    """Records as another trainer has them, whose columns it knows: docs/data.md. null = prompt_key and answer_key name
    them."""
    prompt_key: Fixed[str] = "prompt"
    "Column with the prompt: text or chat messages."
    answer_key: Fixed[str] = "answer"
    "Column with the ground truth."
    response_key: Fixed[str | None] = None
    """Column with a human's response, as text (objective.pairwise=spin); one of more than rollout.max_response_length
    tokens is dropped with its prompt, and counted."""
    score_keys: Fixed[list[str]] = field(default_factory=list)
    """Columns with the scores of the chosen and the rejected answer (rollout.engine=preferences): each is its answer's
    reward, times score_scale, and P(chosen beats rejected) the sigmoid of their difference instead of 1."""
    score_scale: Fixed[Positive[float]] = 1.0
    "What scores are multiplied by."
    probability_key: Fixed[str | None] = None
    "Column with P(chosen beats rejected) (rollout.engine=preferences)."
    apply_chat_template: Fixed[bool] = False
    "Make text one user message, and apply the tokenizer's chat template."
    chat_template_kwargs: Fixed[dict[str, Any]] = field(default_factory=dict)
    "Variables of the chat template, e.g. {enable_thinking: false}."
    max_prompt_length: Fixed[AtLeastOne[int] | None] = None
    "Tokens; longer prompts are dropped and counted."


_FILES = (".jsonl", ".json", ".parquet", ".csv", ".txt")


def is_hub_id(path: str) -> bool:
    """Whether it reads as `org/name` or `org/name:configuration`, and not as a data file."""
    return Path(path).suffix not in _FILES and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(:[\w.-]+)?", path) is not None


def check_data(data: DataConfig) -> Iterator[str]:
    for key in ("train_path", "eval_path"):
        path = getattr(data, key)
        if path is not None and not Path(path).exists() and not is_hub_id(path):
            yield f"data.{key}={path} does not exist"
    if data.format is not None and data.prompt_key != "prompt":
        yield f"data.format={data.format} knows where the prompt is: leave data.prompt_key={data.prompt_key} out"
    if data.score_keys and (len(data.score_keys) != 2 or data.probability_key):
        yield "data.score_keys=[the chosen's column, the rejected's] and data.probability_key say the same: give one"
    if data.chat_template_kwargs and not data.apply_chat_template:
        yield "data.chat_template_kwargs is for chat templates: set data.apply_chat_template=true"
