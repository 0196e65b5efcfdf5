"""From prompts to finished groups: K episodes for each prompt, played by an engine and an environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sppo_megatron.engines.base import Continuation, Engine, Pending, Request
from sppo_megatron.rewards.text import Decode
from sppo_megatron.rollout.environment import Environment, SingleTurn
from sppo_megatron.rollout.episode import Episode
from sppo_megatron.rollout.user_code import said_by_first_rank
from sppo_megatron.types import Group, Prompt, SamplingParams


@dataclass
class Collector:
    """num_samples: K, episodes for each prompt. params.max_new_tokens: tokens of all turns of one together.

    seed, an iteration's number and a prompt's place in it decide the samples, and nothing else does: a resumed run
    collects what the uninterrupted one would have. decode: None for responses without text. Every rank makes the
    same calls.
    """

    engine: Engine
    params: SamplingParams
    num_samples: int
    seed: int
    decode: Decode | None = None
    environment: Environment = field(default_factory=SingleTurn)

    def collect(self, prompts: Sequence[Prompt], iteration: int, first_place: int = 0) -> list[Group]:
        """One group for each prompt, in order, the same on every rank; the same prompt may come twice.

        iteration: counted from 0. first_place: the first prompt's in the iteration. Rewards are left unset. Of each
        response: token_ids with the end token if there is one; rollout_log_probs in nats under the distribution that
        was sampled from; finish_reason; policy_version.
        """
        return self.start(prompts, iteration, first_place).result()

    def start(self, prompts: Sequence[Prompt], iteration: int, first_place: int = 0) -> Episodes:
        """Begins with the first turns, in the background if the engine can."""
        requests = [
            Request(prompt.token_ids, (self.seed, iteration, place), self.num_samples)
            for place, prompt in enumerate(prompts, start=first_place)
        ]
        return Episodes(self, list(prompts), iteration, first_place, self.engine.start(requests, self.params))


@dataclass(frozen=True)
class Episodes:
    """Episodes under way: their first turns were started."""

    collector: Collector
    prompts: list[Prompt]
    iteration: int
    first_place: int
    first_turns: Pending

    def result(self) -> list[Group]:
        """Plays all of them to their ends. Collective."""
        episodes = self._begin(self.first_turns.result())
        for _ in range(1, self.collector.environment.max_turns):
            playing = self._ask_environment(episodes)
            if not playing:
                break
            self._take_turn(episodes, playing)
        self.collector.engine.sleep()
        k, decode = self.collector.num_samples, self.collector.decode
        texts = [None] * len(episodes) if decode is None else decode([episode.token_ids for episode in episodes])
        responses = [episode.response(text) for episode, text in zip(episodes, texts, strict=True)]
        return [Group(prompt, responses[i * k : (i + 1) * k]) for i, prompt in enumerate(self.prompts)]

    def _begin(self, sampled: list[list[Continuation]]) -> list[Episode]:
        """In the order of prompts, then samples."""
        return [
            Episode.begin(prompt, place, number, first)
            for place, (prompt, samples) in enumerate(zip(self.prompts, sampled, strict=True), start=self.first_place)
            for number, first in enumerate(samples)
        ]

    def _ask_environment(self, episodes: list[Episode]) -> list[int]:
        """Puts the environment's answers behind the episodes; the numbers of those that go on."""
        environment, limit = self.collector.environment, self.collector.params.max_new_tokens
        turn = max((episode.num_turns for episode in episodes), default=0)
        waiting = [
            i for i, episode in enumerate(episodes) if episode.num_turns == turn and episode.finish_reason == "stop"
        ]
        answers = said_by_first_rank(
            "the environment", lambda: [environment.answer(episodes[i].prompt, episodes[i].response()) for i in waiting]
        )
        playing = []
        for i, answer in zip(waiting, answers, strict=True):
            if answer is None:
                continue
            if len(episodes[i].token_ids) + len(answer) >= limit:  # no room for a token of the policy
                episodes[i] = episodes[i].cut_off()
                continue
            episodes[i] = episodes[i].answered(answer)
            playing.append(i)
        return playing

    def _take_turn(self, episodes: list[Episode], playing: list[int]) -> None:
        collector = self.collector
        limit = collector.params.max_new_tokens
        requests = [episodes[i].next_request(collector.seed, self.iteration, limit) for i in playing]
        for i, [turn] in zip(playing, collector.engine.generate(requests, collector.params), strict=True):
            episodes[i] = episodes[i].continued(turn)
