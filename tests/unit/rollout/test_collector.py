"""Episodes of one turn and of several, from an engine without a model."""

from __future__ import annotations

import numpy as np
import pytest

from sppo_megatron.errors import TrainingError
from sppo_megatron.rollout.collector import Collector
from sppo_megatron.types import Prompt, Response, SamplingParams
from tests.unit.rollout.fakes import STOP, CountingEngine

PROMPTS = [Prompt(4, np.array([7, 8], np.int32)), Prompt(9, np.array([5], np.int32)), Prompt(4, np.array([7, 8]))]


class Calculator:
    """Answers prompt 4 once, with the number of the policy's tokens so far, and prompt 9 never."""

    def __init__(self, max_turns: int = 2, length: int = 2) -> None:
        self.max_turns = max_turns
        self.length = length
        self.seen: list[tuple[int, list[int]]] = []

    def answer(self, prompt: Prompt, response: Response) -> np.ndarray | None:
        self.seen.append((prompt.index, response.token_ids.tolist()))
        assert response.finish_reason == "stop"
        return None if prompt.index == 9 else np.full(self.length, 90 + response.length, np.int32)


def collector(environment=None, *, room: int = 20, engine: CountingEngine | None = None, samples: int = 2) -> Collector:
    parts = {} if environment is None else {"environment": environment}
    return Collector(engine or CountingEngine(), SamplingParams(room), samples, seed=3, **parts)


def test_a_single_turn():
    playing = collector(samples=3)
    groups = playing.collect(PROMPTS, iteration=6)
    assert [group.prompt for group in groups] == PROMPTS
    [requests] = playing.engine.asked
    assert [(request.seed, request.num_samples) for request in requests] == [((3, 6, place), 3) for place in range(3)]
    sampled = playing.engine.generate(requests, playing.params)
    for group, continuations in zip(groups, sampled, strict=True):
        for response, expected in zip(group.responses, continuations, strict=True):
            assert response.token_ids.tolist() == expected.token_ids.tolist()
            assert response.rollout_log_probs.tolist() == expected.log_probs.tolist()
            assert (response.loss_mask, response.finish_reason, response.policy_version) == (None, "stop", None)
    assert playing.engine.calls[:2] == ["start", "sleep"]  # the memory goes back to the trainer
    assert [len({tuple(r.token_ids) for r in group.responses}) for group in groups] == [3, 3, 3]


def test_two_turns():
    environment, engine = Calculator(), CountingEngine()
    engine.load_weights(iter(()), 12)
    groups = collector(environment, engine=engine).collect(PROMPTS, iteration=6)
    _, second = engine.asked
    assert [request.seed for request in second] == [(3, 6, place, sample, 1) for place in (0, 2) for sample in (0, 1)]
    for group in groups:
        answered = group.prompt.index == 4
        for response in group.responses:
            ids = response.token_ids.tolist()
            assert len(ids) == len(response.rollout_log_probs) == (6 if answered else 2)
            assert response.policy_version == 12 and response.finish_reason == "stop"
            assert response.length == (4 if answered else 2)
            if answered:
                assert response.loss_mask.tolist() == [True, True, False, False, True, True]
                assert ids[2:4] == [92, 92] and ids[1] == ids[5] == STOP
                assert (response.rollout_log_probs == 0).tolist() == [False, False, True, True, False, False]
            else:
                assert response.loss_mask is None
    # the second turn continues everything before it, the environment's words included
    for request, response in zip(second, [*groups[0].responses, *groups[2].responses], strict=True):
        assert request.token_ids.tolist() == [7, 8, *response.token_ids[:4].tolist()]
        assert request.num_samples == 1 and request.max_new_tokens == 16
        [[turn]] = engine.generate([request], SamplingParams(20))
        assert turn.token_ids.tolist() == response.token_ids[4:].tolist()
        assert turn.log_probs.tolist() == response.rollout_log_probs[4:].tolist()


@pytest.mark.parametrize(("max_turns", "tokens"), [(1, 2), (2, 6), (3, 10), (5, 18)])
def test_turns_are_counted(max_turns, tokens):
    [group] = collector(Calculator(max_turns)).collect(PROMPTS[:1], 0)
    assert [len(response.token_ids) for response in group.responses] == [tokens, tokens]


def test_an_environment_decides_when_it_is_done():
    class Twice(Calculator):
        def answer(self, prompt, response):
            answer = super().answer(prompt, response)
            return None if len(response.token_ids) > 4 else answer

    environment = Twice(max_turns=9)
    [group] = collector(environment, samples=1).collect(PROMPTS[:1], 0)
    assert len(group.responses[0].token_ids) == 6 and len(environment.seen) == 2


@pytest.mark.parametrize(
    ("room", "length", "end"),
    [
        (6, 6, "stop"),  # just enough
        (5, 5, "length"),  # the second turn is cut
        (4, 2, "length"),  # no room for a token of the policy: the environment's words stay out
        (2, 2, "length"),
        (1, 1, "length"),  # the first turn is cut, and nobody is asked
    ],
)
def test_the_room_is_of_all_turns_together(room, length, end):
    environment = Calculator()
    [group] = collector(environment, room=room).collect(PROMPTS[:1], 0)
    assert [(len(response.token_ids), response.finish_reason) for response in group.responses] == [(length, end)] * 2
    assert bool(environment.seen) == (room > 1)


def test_a_turn_that_was_cut_off_is_the_last():
    environment = Calculator()
    groups = collector(environment, engine=CountingEngine(stops=lambda request: False)).collect(PROMPTS, 0)
    assert {response.finish_reason for group in groups for response in group.responses} == {"length"}
    assert not environment.seen


def test_text_is_of_the_whole_episode():
    def decode(sequences):
        return [" ".join(map(str, ids)) for ids in sequences]

    spelling = Collector(CountingEngine(), SamplingParams(20), 1, 3, decode, environment=Calculator())
    [group] = spelling.collect(PROMPTS[:1], 0)
    assert group.responses[0].text == " ".join(map(str, group.responses[0].token_ids))


def test_an_environment_that_fails():
    class Broken(Calculator):
        def answer(self, prompt, response):
            raise OSError("the tool is gone")

    with pytest.raises(TrainingError, match="the environment failed: OSError: the tool is gone"):
        collector(Broken()).collect(PROMPTS, 0)


def test_no_prompts():
    assert collector(Calculator()).collect([], 0) == []
