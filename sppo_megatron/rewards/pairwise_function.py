"""A user's own preference between two responses, in worker processes: both orders of every pair, averaged."""

from __future__ import annotations

import logging
import time

from sppo_megatron.config import RewardConfig
from sppo_megatron.errors import ConfigError
from sppo_megatron.rewards.function import PAIR_ARGUMENTS, load_function
from sppo_megatron.rewards.preference import Pair, ordered_pairs, set_preference
from sppo_megatron.rewards.text import Decode, texts_of
from sppo_megatron.rewards.worker_pool import PairCall, WorkerPool
from sppo_megatron.types import Group

logger = logging.getLogger(__name__)


class PairwiseFunction:
    """config.function is called as f(prompt, first, second, answer) and returns P(first wins) in [0, 1].

    metrics, of the last call: pairwise_function_questions, in both orders and equal ones counted once,
    pairwise_function_failed and pairwise_function_seconds.
    Raises ConfigError where the function is missing, can't be found, or doesn't take these arguments.
    """

    needs_answer = False
    gives_preferences = True

    def __init__(self, config: RewardConfig, decode: Decode | None = None) -> None:
        if not config.function:
            raise ConfigError('reward.kind=pairwise_function needs reward.function="module:name"')
        load_function(config.function, PAIR_ARGUMENTS)
        self._config = config
        self._decode = decode
        self._pool = WorkerPool(config)
        self.metrics: dict[str, float] = {}

    def score(self, groups: list[Group]) -> list[Group]:
        """Sets the groups' preferences, and every response's reward to its win rate; returns the same groups.

        A pair is a tie where a call of one of its orders raises, takes longer than reward.timeout_s seconds, ends its
        process or gives no probability; the reason is recorded as an error of both responses.
        """
        started = time.perf_counter()
        questions = [self._questions(group) for group in groups]
        calls = list(dict.fromkeys(call for of_group in questions for call in of_group.values()))
        outcomes = dict(zip(calls, self._pool.run(calls), strict=True))
        for group, of_group in zip(groups, questions, strict=True):
            first_wins: dict[Pair, float] = {}
            failures: dict[Pair, str] = {}
            for pair, call in of_group.items():
                probability, _, error = outcomes[call]
                if probability is None:
                    failures[pair] = str(error)
                else:
                    first_wins[pair] = probability
            set_preference(group, first_wins, failures)
        errors = [error for _, _, error in outcomes.values() if error is not None]
        if errors:
            logger.warning(
                "reward %s failed on %d of %d questions, whose pairs count as ties; the first error: %s",
                self._config.function,
                len(errors),
                len(calls),
                errors[0],
            )
        self.metrics = {
            "pairwise_function_questions": float(len(calls)),
            "pairwise_function_failed": float(len(errors)),
            "pairwise_function_seconds": time.perf_counter() - started,
        }
        return groups

    def close(self) -> None:
        """Stops the worker processes."""
        self._pool.close()

    def _questions(self, group: Group) -> dict[Pair, PairCall]:
        prompt, texts = texts_of(group, self._decode)
        return {(i, j): (prompt, texts[i], texts[j], group.prompt.answer) for i, j in ordered_pairs(texts)}
