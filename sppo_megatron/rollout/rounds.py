"""An iteration's groups in rounds: made, scored, those that teach nothing left out, and as many made again."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from sppo_megatron.rewards.scorer import Scorer, check_failures, score_over_ranks, total, with_means
from sppo_megatron.rollout.adaptive import Lessons
from sppo_megatron.rollout.filter import GroupFilter
from sppo_megatron.rollout.source import GroupSource, SourceState
from sppo_megatron.types import Group, num_tokens

logger = logging.getLogger(__name__)


@dataclass
class Rounds:
    """Scored groups, iteration by iteration. Every rank makes the same calls.

    scorer: None if the source's groups have their scores. keeps: None trains on every group.
    size: groups of an iteration, None for as many as the source's first round keeps. max_rounds: of one iteration.
    oversample: groups that a further round asks for, for each one that is missing. lessons: are told every group that
    was taken or left out.

    The groups taken are the first that teach, by their place and not by when they arrived. Prompts behind the last one
    taken go back and are the next ones: each prompt is trained on or left out for a reason, and none is skipped.
    """

    source: GroupSource
    scorer: Scorer | None
    max_failed_share: float = 1.0
    keeps: GroupFilter | None = None
    size: int | None = None
    max_rounds: int = 1
    oversample: float = 1.0
    lessons: Lessons | None = None

    def next(self, iteration: int) -> tuple[list[Group], dict[str, float]]:
        """The groups of `iteration`, from 0, and what is logged of them; fewer than `size` if the rounds are over.

        Raises ScoringError, with the source where it then is, if too many of the iteration's scores failed.
        """
        made = _Made()
        groups = made.timed("rollout", lambda: self.source.next(iteration))
        if self.keeps is None:
            if self.lessons is None:
                self.source.begin(iteration + 1)  # which is sampled while these are scored
                return self._scored(groups, made), made.metrics()
            scored = self._scored(groups, made)
            waiting = self._learn(scored)
            self.source.begin(iteration + 1)
            return scored, made.metrics() | waiting
        places = self._kept(groups, made, 0)
        missing = 0 if self.size is None else self.size - len(places)
        while missing > 0 and made.rounds < self.max_rounds:
            place, count, kept = len(made.groups), math.ceil(self.oversample * missing), len(places)
            groups = made.timed("rollout", partial(self.source.more, iteration, place, count))
            if not groups:
                break
            places += self._kept(groups, made, place)
            missing -= len(places) - kept
        if missing > 0:
            given = (iteration, len(places), len(made.groups), made.rounds)
            logger.warning("iteration %d: rollout.filter keeps %d of %d groups after %d rounds, too few", *given)
        taken = places[: self.size]
        surplus = 0 if self.size is None or missing > 0 else len(made.groups) - taken[-1] - 1
        self.source.give_back(surplus)
        metrics = made.filter_metrics(len(taken), surplus) | self._learn(made.groups[: len(made.groups) - surplus])
        self.source.begin(iteration + 1)
        return [made.groups[place] for place in taken], made.metrics() | metrics

    def settle(self) -> None:
        """See GroupSource."""
        self.source.settle()

    def state(self) -> SourceState:
        """See GroupSource."""
        return self.source.state()

    def load_state(self, state: SourceState) -> None:
        """See GroupSource."""
        self.source.load_state(state)

    def _learn(self, groups: list[Group]) -> dict[str, float]:
        """How many prompts wait from now on."""
        if self.lessons is None:
            return {}
        self.lessons.note(groups)
        return {"prompts_waiting": float(self.lessons.waiting)}

    def _kept(self, groups: list[Group], made: _Made, place: int) -> list[int]:
        """The places of those that teach. place: of the first group in the iteration."""
        assert self.keeps is not None
        scored = self._scored(groups, made)
        return [place + i for i, keep in enumerate(self.keeps(scored)) if keep]

    def _scored(self, groups: list[Group], made: _Made) -> list[Group]:
        """Adds a round to what was made. Failures are counted over the whole iteration: a round may be small."""
        scorer = self.scorer
        scored = groups if scorer is None else made.timed("reward", lambda: score_over_ranks(scorer, groups))
        made.rounds += 1
        made.groups += scored
        if scorer is not None:
            made.scoring = total([made.scoring, scorer.metrics])
            check_failures(made.groups, made.scoring, self.max_failed_share)
        return scored


@dataclass
class _Made:
    """What was made for one iteration, whatever of it is trained on."""

    groups: list[Group] = field(default_factory=list)
    rounds: int = 0
    scoring: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: {"rollout": 0.0, "reward": 0.0})

    def timed(self, what: str, work: Callable[[], list[Group]]) -> list[Group]:
        started = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds[what] += time.perf_counter() - started

    def metrics(self) -> dict[str, float]:
        return with_means(self.scoring) | {
            "seconds_rollout": self.seconds["rollout"],
            "seconds_reward": self.seconds["reward"],
            "rollout_tokens_per_second": num_tokens(self.groups) / max(self.seconds["rollout"], 1e-9),
        }

    def filter_metrics(self, num_taken: int, num_surplus: int) -> dict[str, float]:
        """reward_mean_sampled: over all responses, where reward_mean is of those that are trained on."""
        rewards = [response.reward for group in self.groups for response in group.responses]
        known = [reward for reward in rewards if reward is not None]
        return ({"reward_mean_sampled": sum(known) / len(known)} if known else {}) | {
            "rollout_rounds": float(self.rounds),
            "groups_sampled": float(len(self.groups)),
            "groups_left_out": float(len(self.groups) - num_taken - num_surplus),
            "groups_given_back": float(num_surplus),
        }
