"""A scalar reward model: r(x, y) is the output of a sequence classifier on prompt and response."""

from __future__ import annotations

import logging
import math
import time

from sppo_megatron.config import RewardConfig
from sppo_megatron.rewards.sequence_classifier import SequenceClassifier, Text
from sppo_megatron.rewards.text import Decode, texts_of
from sppo_megatron.types import Group

logger = logging.getLogger(__name__)


class RewardModel:
    """The reward is the logit: differences of two are Bradley–Terry log-odds, which objective.reward=win_rate takes.

    metrics, of the last call: reward_model_responses and reward_model_seconds.
    Raises ValueError as SequenceClassifier.
    """

    needs_answer = False
    gives_preferences = False

    def __init__(self, config: RewardConfig, decode: Decode | None = None) -> None:
        self._default = config.default
        self._decode = decode
        self._classifier = SequenceClassifier(config.model)
        self.metrics: dict[str, float] = {}

    def score(self, groups: list[Group]) -> list[Group]:
        """Sets the reward of every response, in nats of odds, and returns the same groups.

        A response longer than reward.model.max_length tokens with its prompt, or whose score isn't finite, gets
        reward.default and an error.
        """
        started = time.perf_counter()
        responses = [response for group in groups for response in group.responses]
        inputs = [self._input(prompt, text) for group in groups for prompt, text in _with_prompt(group, self._decode)]
        has_template = bool(self._classifier.tokenizer.chat_template)
        scores = self._classifier.logits(inputs, special_tokens=not has_template)
        for response, score in zip(responses, scores, strict=True):
            response.correct, response.error = None, why_unusable(score)
            response.reward = self._default if score is None or response.error else score
        errors = [response.error for response in responses if response.error]
        if errors:
            logger.warning(
                "the reward model failed on %d of %d responses, which got the default %g; the first error: %s",
                len(errors),
                len(responses),
                self._default,
                errors[0],
            )
        seconds = time.perf_counter() - started
        self.metrics = {"reward_model_responses": float(len(responses)), "reward_model_seconds": seconds}
        return groups

    def close(self) -> None:
        """Nothing is held open."""

    def _input(self, prompt: str, response: str) -> Text:
        """A conversation of two turns if the tokenizer has a chat template, else two segments, else one text."""
        tokenizer = self._classifier.tokenizer
        if tokenizer.chat_template:
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            return tokenizer.apply_chat_template(turns, tokenize=False)
        return (prompt, response) if tokenizer.sep_token is not None else prompt + response


def why_unusable(logit: float | None) -> str | None:
    """What is wrong with a classifier's output, None if it is a score."""
    if logit is None:
        return "empty, or longer than reward.model.max_length tokens"
    return None if math.isfinite(logit) else f"the model's score is {logit}"


def _with_prompt(group: Group, decode: Decode | None) -> list[tuple[str, str]]:
    prompt, texts = texts_of(group, decode)
    return [(prompt, text) for text in texts]
