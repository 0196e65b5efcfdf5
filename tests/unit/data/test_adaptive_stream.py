"""Prompts that teach nothing come at every second, fourth, ... of their turns: against a plain simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sppo_megatron.data.adaptive_stream import AdaptiveStream
from sppo_megatron.data.mixture import PromptMixture, WeightedStream
from sppo_megatron.data.prompt_stream import PromptStream
from sppo_megatron.types import Prompt

PER_ITERATION = 4


def prompts(count: int, source: str | None = None) -> list[Prompt]:
    return [Prompt(10 * i, np.array([i], np.int32), source=source) for i in range(count)]  # an index is no place


def teaches(index: int, iteration: int) -> bool:
    """A third never does; a third only later."""
    return index % 3 == 0 or (index % 3 == 1 and iteration >= 12)


def stream(count: int = 9, most: int = 3) -> AdaptiveStream:
    return AdaptiveStream(prompts(count), PER_ITERATION, seed=5, most=most)


def run(each: AdaptiveStream, iterations: range, surplus: int = 0) -> list[list[int]]:
    """Iterations as the loop makes them: `surplus` prompts more than needed are given back."""
    found = []
    for iteration in iterations:
        drawn = each.next(PER_ITERATION + surplus, iteration)
        for prompt in drawn[:PER_ITERATION]:
            each.note(prompt, teaches(prompt.index, iteration))
        each.give_back(surplus)
        found.append([prompt.index for prompt in drawn[:PER_ITERATION]])
    return found


def definition(iterations: int, count: int = 9, most: int = 3) -> list[list[int]]:
    """Turn by turn, with what each prompt remembers in plain dicts."""
    turns = PromptStream(prompts(count), PER_ITERATION, seed=5)
    useless, left = dict.fromkeys(range(0, 10 * count, 10), 0), dict.fromkeys(range(0, 10 * count, 10), 0)
    found = []
    for iteration in range(iterations):
        taken: list[int] = []
        while len(taken) < PER_ITERATION:
            [prompt] = turns.next(1)
            if left[prompt.index]:
                left[prompt.index] -= 1
            else:
                taken.append(prompt.index)
        for index in taken:
            useless[index] = 0 if teaches(index, iteration) else min(most, useless[index] + 1)
            left[index] = 2 ** useless[index] - 1 if useless[index] else 0
        found.append(taken)
    return found


@pytest.mark.parametrize("most", [1, 3])
def test_prompts_come_as_defined(most):
    found = run(stream(most=most), range(40))
    assert found == definition(40, most=most)
    counts = {index: sum(index in each for each in found[20:]) for index in range(0, 90, 10)}
    assert min(counts[i] for i in counts if i % 3 == 0) > max(counts[i] for i in counts if i % 3 == 2)


def test_what_always_teaches_is_the_plain_stream():
    each, plain = stream(), PromptStream(prompts(9), PER_ITERATION, seed=5)
    for iteration in range(20):
        drawn = each.next(PER_ITERATION, iteration)
        assert drawn and [p.index for p in drawn] == [p.index for p in plain.next()]
        for prompt in drawn:
            each.note(prompt, True)


@pytest.mark.parametrize("surplus", [1, 5])
def test_prompts_given_back_are_the_next_ones(surplus):
    """Whatever was passed over on the way to them."""
    first, second = stream(), stream()
    for each, more in ((first, 0), (second, surplus)):
        run(each, range(10))
        run(each, range(10, 11), more)
    assert first.state_dict() == second.state_dict()
    assert run(first, range(11, 20)) == run(second, range(11, 20))


@pytest.mark.parametrize("stop", [1, 7, 13])
def test_a_resume_continues_bitwise(stop):
    whole, stopped, resumed = stream(), stream(), stream()
    expected = run(whole, range(30))
    assert run(stopped, range(stop)) == expected[:stop]
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert run(resumed, range(stop, 30)) == expected[stop:]
    assert resumed.state_dict() == whole.state_dict() and resumed.waiting == whole.waiting > 0


def test_a_plain_streams_state_and_a_lower_limit_are_taken_up():
    plain = PromptStream(prompts(9), PER_ITERATION, seed=5)
    plain.next()
    each = stream()
    each.load_state_dict(plain.state_dict())
    assert (each.position, each.waiting) == (PER_ITERATION, 0)
    run(each, range(1, 30))
    lower = stream(most=1)
    lower.load_state_dict(each.state_dict())
    assert all(count <= 1 and turns <= 1 for count, turns in lower.state_dict()["waiting"].values())
    plain.load_state_dict(each.state_dict())
    assert plain.position == each.position


def test_all_useless_prompts_still_come():
    each = stream(count=4)
    for iteration in range(20):
        drawn = each.next(PER_ITERATION, iteration)
        assert len(drawn) == PER_ITERATION
        for prompt in drawn:
            each.note(prompt, False)


def test_sources_keep_their_proportions():
    """Each source passes over its own: what the others do changes nothing."""

    def mixture() -> PromptMixture:
        streams = [
            WeightedStream(name, AdaptiveStream(prompts(9, name), 1, seed=i, most=3), (weight,))
            for i, (name, weight) in enumerate({"a": 1.0, "b": 3.0}.items())
        ]
        return PromptMixture(streams)

    def steps(each: PromptMixture, iterations: range) -> list[list[tuple[str | None, int]]]:
        found = []
        for iteration in iterations:
            drawn = each.next(9, iteration)
            for prompt in drawn[:8]:
                each.note(prompt, teaches(prompt.index, iteration) and prompt.source == "a")
            each.give_back(1)
            found.append([(prompt.source, prompt.index) for prompt in drawn[:8]])
        return found

    whole, stopped, resumed = mixture(), mixture(), mixture()
    expected = steps(whole, range(20))
    assert all(sum(source == "a" for source, _ in each) == 2 for each in expected)
    assert steps(stopped, range(9)) == expected[:9]
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert steps(resumed, range(9, 20)) == expected[9:] and resumed.waiting == whole.waiting > 9
