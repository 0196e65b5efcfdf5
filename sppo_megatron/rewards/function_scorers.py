"""Rewards that are functions, ours or a user's: of one response, or of two."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from sppo_megatron.config import RewardConfig
from sppo_megatron.errors import ConfigError
from sppo_megatron.rewards.function import PAIR_ARGUMENTS, RESPONSE_ARGUMENTS, UserFunction, by_signature, load_function
from sppo_megatron.rewards.preference import Pair, ordered_pairs, with_preference
from sppo_megatron.rewards.scorer import Outcome, with_rewards
from sppo_megatron.rewards.text import Decode, text_of, texts_of
from sppo_megatron.rewards.verifiers import Score
from sppo_megatron.rewards.worker import describe, pairwise_function, response_function, verifier_call
from sppo_megatron.rewards.worker_pool import Call, WorkerPool
from sppo_megatron.types import Group, Response

logger = logging.getLogger(__name__)


class RewardScorer:
    """Scores responses one by one: each gets a reward, whatever the function does. A context manager; else `close` it.

    decode: for prompts and responses that carry no text.
    verifier: the function; None for the user's, config.function. prepare: given for a verifier that may hang or die,
    which runs in worker processes, as the user's function does: what is called first, here and in each of them.
    needs_answer: whether every prompt must have an answer.
    Raises ConfigError for a bad setting, or a function that can't be found; what `prepare` raises.
    """

    gives_preferences = False

    def __init__(
        self,
        config: RewardConfig,
        decode: Decode | None = None,
        verifier: Callable[..., Score] | None = None,
        prepare: Callable[[], object] | None = None,
        needs_answer: bool = False,
    ) -> None:
        _check(config)
        self.config = config
        self.decode = decode
        self.metrics: dict[str, float] = {}
        self.needs_answer = needs_answer
        self._pool: WorkerPool | None = None
        if verifier is None:
            self._function = load_function(str(config.function))
            self._pool = WorkerPool(config, partial(response_function, str(config.function)))
            return
        self._function = by_signature(verifier, config.kind)
        if prepare is not None:
            prepare()
            self._pool = WorkerPool(config, partial(verifier_call, verifier, prepare))

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """See `Scorer`.

        A response whose scoring raises, takes longer than timeout_s seconds, ends its process or gives no finite number
        gets `config.default` as its reward and the reason as its error; one warning per call counts these. It isn't
        correct, if the others' correctness is defined. Under several ranks each scores its own share.
        Raises ConfigError if text is missing and there is no `decode`.
        """
        calls = [call for group in groups for call in self._calls(group)]
        outcomes = self._pool.run(calls) if self._pool is not None else [self._call_inline(call) for call in calls]
        is_defined = self.needs_answer or any(outcome.correct is not None for outcome in outcomes)
        failed = [outcome for outcome in outcomes if outcome.reward is None]
        if failed:
            logger.warning(
                "reward %s failed on %d of %d responses, which got the default %g; the first error: %s",
                self.config.function or self.config.kind,
                len(failed),
                len(outcomes),
                self.config.default,
                failed[0].error,
            )
        in_order = iter(
            o if o.reward is not None else o._replace(correct=False if is_defined else None) for o in outcomes
        )
        return [with_rewards(g, [next(in_order) for _ in g.responses], self.config.default) for g in groups]

    def close(self) -> None:
        """Stops the worker processes."""
        if self._pool is not None:
            self._pool.close()

    def __enter__(self) -> RewardScorer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _calls(self, group: Group) -> list[Call]:
        prompt, texts = text_of(group.prompt, self.decode), texts_of(group, self.decode)
        extras = _prompt_extras(group, texts)
        calls = []
        for response, text in zip(group.responses, texts, strict=True):
            given = dict(zip(RESPONSE_ARGUMENTS, (prompt, text, group.prompt.answer), strict=True))
            calls.append(_call(self._function, RESPONSE_ARGUMENTS, given | extras | _response_extras(response)))
        return calls

    def _call_inline(self, call: Call) -> Outcome:
        try:
            score = self._function(*call)
        except Exception as error:
            return Outcome(None, None, describe(error))
        return Outcome(score.reward, score.correct)


class PairwiseFunction:
    """config.function(prompt, first, second, answer) returns P(first wins) in [0, 1], in worker processes.

    metrics, of the last call: pairwise_function_questions, in both orders and equal ones counted once,
    pairwise_function_failed and pairwise_function_seconds.
    Raises ConfigError if the function can't be found or doesn't take these arguments.
    """

    needs_answer = False
    gives_preferences = True

    def __init__(self, config: RewardConfig, decode: Decode | None = None) -> None:
        self._function = load_function(str(config.function), PAIR_ARGUMENTS)
        self._config = config
        self._decode = decode
        self._pool = WorkerPool(config, partial(pairwise_function, str(config.function)))
        self.metrics: dict[str, float] = {}

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """Both orders of every pair, averaged; every response's reward is its win rate. See `Scorer`.

        A pair is a tie if a call of one of its orders raises, takes longer than reward.timeout_s seconds, ends its
        process or gives no probability; the reason is recorded as an error of both responses.
        """
        started = time.perf_counter()
        calls: dict[Any, Call] = {}  # equal questions are one
        questions = [self._questions(place, group, calls) for place, group in enumerate(groups)]
        outcomes = dict(zip(calls, self._pool.run(list(calls.values())), strict=True))
        scored = []
        for group, of_group in zip(groups, questions, strict=True):
            found = {pair: outcomes[key] for pair, key in of_group.items()}
            first_wins = {pair: outcome.reward for pair, outcome in found.items() if outcome.reward is not None}
            failures = {pair: str(outcome.error) for pair, outcome in found.items() if outcome.reward is None}
            scored.append(with_preference(group, first_wins, failures))
        errors = [outcome.error for outcome in outcomes.values() if outcome.error is not None]
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
        return scored

    def close(self) -> None:
        """Stops the worker processes."""
        self._pool.close()

    def _questions(self, place: int, group: Group, calls: dict[Any, Call]) -> dict[Pair, Any]:
        """The key of every ordered pair; adds each key's call to `calls`."""
        prompt, texts = text_of(group.prompt, self._decode), texts_of(group, self._decode)
        extras = _prompt_extras(group, texts)
        by_response = [_response_extras(response) for response in group.responses]
        needs_texts_alone = set(self._function.names) <= set(PAIR_ARGUMENTS)
        questions: dict[Pair, Any] = {}
        for i, j in ordered_pairs(texts):
            given = dict(zip(PAIR_ARGUMENTS, (prompt, texts[i], texts[j], group.prompt.answer), strict=True))
            questions[i, j] = key = tuple(given.values()) if needs_texts_alone else (place, i, j)
            both = {name: (by_response[i][name], by_response[j][name]) for name in by_response[i]}
            calls[key] = _call(self._function, PAIR_ARGUMENTS, given | extras | both)
        return questions


def _call(function: UserFunction, arguments: Sequence[str], given: dict[str, Any]) -> Call:
    """What is sent to a worker: of all that is given, what the function asks for."""
    positional = tuple(given[name] for name in arguments[: function.num_positional])
    return positional, {name: given[name] for name in function.names}


def _prompt_extras(group: Group, texts: Sequence[str]) -> dict[str, Any]:
    """PROMPT_EXTRAS of a group. group: the texts of all its responses, in order."""
    prompt = group.prompt
    return {"messages": prompt.messages, "extra": dict(prompt.extra), "source": prompt.source, "group": list(texts)}


def _response_extras(response: Response) -> dict[str, Any]:
    """RESPONSE_EXTRAS. loss_mask: bool [response_length], all True if the response has none."""
    mask = response.loss_mask
    return {
        "token_ids": response.token_ids,
        "loss_mask": np.ones(len(response.token_ids), bool) if mask is None else mask,
        "finish_reason": response.finish_reason,
    }


def _check(config: RewardConfig) -> None:
    if config.num_workers < 1:
        raise ConfigError(f"reward.num_workers must be at least 1, got {config.num_workers}")
    if not config.timeout_s > 0:
        raise ConfigError(f"reward.timeout_s must be above 0 seconds, got {config.timeout_s}")
    if not np.isfinite(config.default):
        raise ConfigError(f"reward.default must be a finite number, got {config.default}")
