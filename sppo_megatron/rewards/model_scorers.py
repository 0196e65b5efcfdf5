"""Sequence classifiers as rewards: a score of each response, or a preference between two."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from sppo_megatron.config import RewardConfig
from sppo_megatron.rewards.preference import Pair, ordered_pairs, with_preference
from sppo_megatron.rewards.scorer import Outcome, with_rewards
from sppo_megatron.rewards.sequence_classifier import SequenceClassifier, Text
from sppo_megatron.rewards.text import (
    PAIRWISE_TEMPLATE,
    Decode,
    Message,
    conversation,
    load_template,
    render,
    texts_of,
    transcript,
    with_answer,
)
from sppo_megatron.types import Group, Prompt

logger = logging.getLogger(__name__)


class RewardModel:
    """The reward is the logit: differences of two are Bradley–Terry log-odds, which objective.reward=win_rate takes.

    metrics, of the last call: reward_model_responses and reward_model_seconds.
    Raises ConfigError as SequenceClassifier.
    """

    needs_answer = False
    gives_preferences = False

    def __init__(self, config: RewardConfig, decode: Decode | None = None) -> None:
        self._default = config.default
        self._decode = decode
        self._classifier = SequenceClassifier(config.model)
        self.metrics: dict[str, float] = {}

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """Rewards in nats of odds. See `Scorer`.

        A response longer than reward.model.max_length tokens with its prompt, or whose score isn't finite, gets
        reward.default and an error.
        """
        started = time.perf_counter()
        inputs = [self._input(group.prompt, text) for group in groups for text in texts_of(group, self._decode)]
        logits = iter(self._classifier.logits(inputs, special_tokens=not self._classifier.tokenizer.chat_template))
        outcomes = [[_outcome(next(logits)) for _ in group.responses] for group in groups]
        errors = [outcome.error for of_group in outcomes for outcome in of_group if outcome.error]
        if errors:
            logger.warning(
                "the reward model failed on %d of %d responses, which got the default %g; the first error: %s",
                len(errors),
                len(inputs),
                self._default,
                errors[0],
            )
        seconds = time.perf_counter() - started
        self.metrics = {"reward_model_responses": float(len(inputs)), "reward_model_seconds": seconds}
        return [with_rewards(*both, self._default) for both in zip(groups, outcomes, strict=True)]

    def close(self) -> None:
        """Nothing is held open."""

    def _input(self, prompt: Prompt, response: str) -> Text:
        """The conversation by the model's own chat template, else two segments, else one text."""
        tokenizer = self._classifier.tokenizer
        if tokenizer.chat_template:
            return _rendered(tokenizer, with_answer(conversation(prompt, self._decode), response))
        text = transcript(prompt, self._decode)
        return (text, response) if tokenizer.sep_token is not None else text + response


class PairwiseModel:
    """P(first beats second) is the sigmoid of the classifier's output on the prompt and both texts.

    metrics, of the last call: pairwise_model_questions, in both orders, pairwise_model_failed and
    pairwise_model_seconds.

    Raises ConfigError as SequenceClassifier, and if the template is bad.
    """

    needs_answer = False
    gives_preferences = True

    def __init__(self, config: RewardConfig, decode: Decode | None = None) -> None:
        self._decode = decode
        self._template = load_template(config.model.template, PAIRWISE_TEMPLATE)
        self._classifier = SequenceClassifier(config.model)
        self.metrics: dict[str, float] = {}

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """Preferences, and every response's reward its win rate. See `Scorer`.

        A pair that is longer than reward.model.max_length tokens, or whose score isn't finite, is a tie, recorded as an
        error of both responses.
        """
        started = time.perf_counter()
        pairs: list[list[Pair]] = []
        inputs: list[str] = []
        for group in groups:
            prompt, responses = transcript(group.prompt, self._decode), texts_of(group, self._decode)
            pairs.append(ordered_pairs(responses))
            inputs += [self._input(prompt, responses[i], responses[j]) for i, j in pairs[-1]]
        logits = iter(self._classifier.logits(inputs, special_tokens=not self._classifier.tokenizer.chat_template))
        scored, num_failed = [], 0
        for group, of_group in zip(groups, pairs, strict=True):
            first_wins, failures = {}, {}
            for pair in of_group:
                logit, _, error = _outcome(next(logits))
                if logit is None:
                    failures[pair] = str(error)
                else:
                    first_wins[pair] = _sigmoid(logit)
            scored.append(with_preference(group, first_wins, failures))
            num_failed += len(failures)
        if num_failed:
            logger.warning("the pairwise model failed on %d of %d pairs, which count as ties", num_failed, len(inputs))
        self.metrics = {
            "pairwise_model_questions": float(len(inputs)),
            "pairwise_model_failed": float(num_failed),
            "pairwise_model_seconds": time.perf_counter() - started,
        }
        return scored

    def close(self) -> None:
        """Nothing is held open."""

    def _input(self, prompt: str, first: str, second: str) -> str:
        text = render(self._template, prompt, first, second)
        tokenizer = self._classifier.tokenizer
        return _rendered(tokenizer, [{"role": "user", "content": text}]) if tokenizer.chat_template else text


def _rendered(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Empty, which is no input, if the template refuses the conversation."""
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False)
    except TemplateError:
        return ""


def _outcome(logit: float | None) -> Outcome:
    """A classifier's output, or what is wrong with it."""
    if logit is None:
        return Outcome(None, None, "empty, longer than reward.model.max_length tokens, or refused by the chat template")
    return Outcome(logit) if math.isfinite(logit) else Outcome(None, None, f"the model's score is {logit}")


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
