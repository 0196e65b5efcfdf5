"""Scores responses one by one: each gets a reward, whatever the reward function does."""

from __future__ import annotations

import logging

import numpy as np

from sppo_megatron.config import RewardConfig
from sppo_megatron.errors import ConfigError
from sppo_megatron.rewards.function import load_function
from sppo_megatron.rewards.text import Decode, texts_of
from sppo_megatron.rewards.verifiers import VERIFIERS, check_math_verify
from sppo_megatron.rewards.worker import describe
from sppo_megatron.rewards.worker_pool import Call, Outcome, WorkerPool
from sppo_megatron.types import Group

logger = logging.getLogger(__name__)

KINDS = (*VERIFIERS, "function")
ISOLATED_KINDS = ("math_verify", "function")  # code that may hang or die: runs in worker processes


class RewardScorer:
    """Use as a context manager, or call `close`.

    decode: token ids [length] int32 -> text without special tokens, for prompts and responses that carry no text.
    Raises ConfigError on an unknown kind, a bad setting, or a function that can't be found; ImportError without
    math-verify.
    """

    gives_preferences = False

    def __init__(self, config: RewardConfig, decode: Decode | None = None) -> None:
        _check(config)
        self.config = config
        self.decode = decode
        self.metrics: dict[str, float] = {}
        self._pool = WorkerPool(config) if config.kind in ISOLATED_KINDS else None

    @property
    def needs_answer(self) -> bool:
        """Whether every prompt must have an answer."""
        return self.config.kind != "function"

    def score(self, groups: list[Group]) -> list[Group]:
        """Sets reward, correct and error of every response in place, and returns the same groups.

        A response whose scoring raises, takes longer than timeout_s seconds, ends its process or gives no finite number
        gets `config.default` as its reward and the reason as its error; one warning per call counts these. It isn't
        correct, where the others' correctness is defined. Under several ranks each scores its own share.
        Raises ConfigError where text is missing and there is no `decode`.
        """
        calls = [call for group in groups for call in self._calls(group)]
        outcomes = self._pool.run(calls) if self._pool is not None else [self._call_inline(call) for call in calls]
        correct_is_defined = self.needs_answer or any(correct is not None for _, correct, _ in outcomes)
        responses = [response for group in groups for response in group.responses]
        for response, (reward, correct, error) in zip(responses, outcomes, strict=True):
            if reward is None:
                reward, correct = self.config.default, False if correct_is_defined else None
            response.reward, response.correct, response.error = reward, correct, error
        self._report([error for _, _, error in outcomes if error is not None], len(calls))
        return groups

    def close(self) -> None:
        """Stops the worker processes."""
        if self._pool is not None:
            self._pool.close()

    def __enter__(self) -> RewardScorer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _calls(self, group: Group) -> list[Call]:
        prompt, texts = texts_of(group, self.decode)
        return [(prompt, text, group.prompt.answer) for text in texts]

    def _call_inline(self, call: Call) -> Outcome:
        try:
            score = VERIFIERS[self.config.kind](*call)
        except Exception as error:
            return None, None, describe(error)
        return score.reward, score.correct, None

    def _report(self, errors: list[str], num_responses: int) -> None:
        if errors:
            logger.warning(
                "reward %s failed on %d of %d responses, which got the default %g; the first error: %s",
                self.config.function or self.config.kind,
                len(errors),
                num_responses,
                self.config.default,
                errors[0],
            )


def _check(config: RewardConfig) -> None:
    if config.kind not in KINDS:
        raise ConfigError(f"reward.kind={config.kind!r} is not known; choose one of {', '.join(KINDS)}")
    if config.num_workers < 1:
        raise ConfigError(f"reward.num_workers must be at least 1, got {config.num_workers}")
    if not config.timeout_s > 0:
        raise ConfigError(f"reward.timeout_s must be above 0 seconds, got {config.timeout_s}")
    if not np.isfinite(config.default):
        raise ConfigError(f"reward.default must be a finite number, got {config.default}")
    if config.kind == "function":
        if not config.function:
            raise ConfigError('reward.kind=function needs reward.function="module:name"')
        load_function(config.function)
    elif config.function:
        raise ConfigError(f"reward.function is set, but reward.kind={config.kind}; set reward.kind=function")
    if config.kind == "math_verify":
        check_math_verify()
