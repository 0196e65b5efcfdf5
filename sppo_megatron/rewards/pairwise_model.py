"""A pairwise model: P(first beats second) is the sigmoid of a sequence classifier's output on prompt and both texts."""

from __future__ import annotations

import logging
import math
import time

from sppo_megatron.config import RewardConfig
from sppo_megatron.rewards.preference import Pair, ordered_pairs, set_preference
from sppo_megatron.rewards.reward_model import why_unusable
from sppo_megatron.rewards.sequence_classifier import SequenceClassifier
from sppo_megatron.rewards.template import PAIRWISE_TEMPLATE, load_template, render
from sppo_megatron.rewards.text import Decode, texts_of
from sppo_megatron.types import Group

logger = logging.getLogger(__name__)


class PairwiseModel:
    """metrics, of the last call: pairwise_model_questions, in both orders, pairwise_model_failed and
    pairwise_model_seconds.

    Raises ValueError as SequenceClassifier, and where the template is bad.
    """

    needs_answer = False
    gives_preferences = True

    def __init__(self, config: RewardConfig, decode: Decode | None = None) -> None:
        self._decode = decode
        self._template = load_template(config.model.template, PAIRWISE_TEMPLATE)
        self._classifier = SequenceClassifier(config.model)
        self.metrics: dict[str, float] = {}

    def score(self, groups: list[Group]) -> list[Group]:
        """Sets the groups' preferences, and every response's reward to its win rate; returns the same groups.

        A pair that is longer than reward.model.max_length tokens, or whose score isn't finite, is a tie, recorded as an
        error of both responses.
        """
        started = time.perf_counter()
        pairs: list[list[Pair]] = []
        texts: list[str] = []
        for group in groups:
            prompt, responses = texts_of(group, self._decode)
            pairs.append(ordered_pairs(responses))
            texts += [self._text(prompt, responses[i], responses[j]) for i, j in pairs[-1]]
        has_template = bool(self._classifier.tokenizer.chat_template)
        logits = iter(self._classifier.logits(texts, special_tokens=not has_template))
        num_failed = 0
        for group, of_group in zip(groups, pairs, strict=True):
            first_wins, failures = {}, {}
            for pair in of_group:
                logit = next(logits)
                why = why_unusable(logit)
                if why is None and logit is not None:
                    first_wins[pair] = _sigmoid(logit)
                else:
                    failures[pair] = str(why)
            set_preference(group, first_wins, failures)
            num_failed += len(failures)
        if num_failed:
            logger.warning("the pairwise model failed on %d of %d pairs, which count as ties", num_failed, len(texts))
        seconds = time.perf_counter() - started
        self.metrics = {
            "pairwise_model_questions": float(len(texts)),
            "pairwise_model_failed": float(num_failed),
            "pairwise_model_seconds": seconds,
        }
        return groups

    def close(self) -> None:
        """Nothing is held open."""

    def _text(self, prompt: str, first: str, second: str) -> str:
        text = render(self._template, prompt, first, second)
        tokenizer = self._classifier.tokenizer
        if not tokenizer.chat_template:
            return text
        return tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
