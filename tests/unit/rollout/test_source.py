"""Where groups come from, iteration by iteration, at once or ahead, and over a resume at every moment."""

from __future__ import annotations

import numpy as np
import pytest

from sppo_megatron.data.prompt_stream import PromptStream
from sppo_megatron.rollout.ahead import GroupsAhead
from sppo_megatron.rollout.collector import Collector
from sppo_megatron.rollout.source import SampledGroups, SourceState
from sppo_megatron.types import Prompt, SamplingParams
from tests.unit.rollout.fakes import CountingEngine

PROMPTS = [Prompt(index, np.array([index + 1], np.int32), f"p{index}") for index in range(5)]
ITERATIONS = 4


def make(ahead: bool, iterations: int = ITERATIONS):
    engine = CountingEngine()
    sampled = SampledGroups(Collector(engine, SamplingParams(4), 2, seed=1), PromptStream(PROMPTS, 3, seed=2), 3)
    return engine, GroupsAhead(sampled, iterations) if ahead else sampled


def told(groups):
    return [
        (group.prompt.text, [(r.token_ids.tolist(), r.policy_version) for r in group.responses]) for group in groups
    ]


def run(engine, source, start: int = 0, state: SourceState | None = None):
    """As the trainer does: weights, groups, weights, groups, ..."""
    found = []
    for iteration in range(start, ITERATIONS):
        source.settle()
        engine.load_weights(iter(()), iteration)
        if state is not None:
            source.load_state(state)
            state = None
        found.append(told(source.next(iteration)))
        source.begin(iteration + 1)
    return found


def versions(found):
    return [{version for _, samples in groups for _, version in samples} for groups in found]


def test_at_once_and_ahead_answer_the_same_prompts_with_other_weights():
    once, ahead = run(*make(False)), run(*make(True))
    assert versions(once) == [{0}, {1}, {2}, {3}]
    assert versions(ahead) == [{0}, {0}, {1}, {2}]
    assert [[text for text, _ in groups] for groups in once] == [[text for text, _ in groups] for groups in ahead]


def test_nothing_is_begun_beyond_the_last_iteration():
    engine, source = make(True)
    run(engine, source)
    assert engine.calls.count("start") == ITERATIONS


def test_weights_wait_for_what_is_under_way():
    engine, source = make(True)
    run(engine, source)
    for place, call in enumerate(engine.calls):
        if call.startswith("load") and place:
            assert engine.calls[place - 1] == "sleep"  # which ends the groups that were under way


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("stop", range(1, ITERATIONS))
def test_a_resume_gets_the_very_same_groups(tmp_path, ahead, stop):
    engine, source = make(ahead)
    expected = run(engine, source)
    engine, source = make(ahead)
    for iteration in range(stop):
        source.settle()
        engine.load_weights(iter(()), iteration)
        source.next(iteration)
        source.begin(iteration + 1)
    source.state().write(tmp_path)
    assert run(*make(ahead), start=stop, state=SourceState.read(tmp_path)) == expected[stop:]


def test_going_back_before_groups_that_were_taken():
    engine, source = make(True)
    engine.load_weights(iter(()), 0)
    source.next(0)
    source.begin(1)
    before = source.state()
    first = told(source.next(1))
    source.load_state(before)
    assert told(source.next(1)) == first


def test_a_folder_without_a_position(tmp_path):
    with pytest.raises(ValueError, match="doesn't say where its prompts stand"):
        SourceState.read(tmp_path)
