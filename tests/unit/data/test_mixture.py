"""Proportions counted over every stretch, and a resume at every prompt."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from sppo_megatron.data.mixture import PromptMixture, WeightedStream, choose
from sppo_megatron.data.prompt_stream import PromptStream
from sppo_megatron.errors import ConfigError
from sppo_megatron.types import Prompt


def stream_of(name: str, count: int, repeat: bool = True) -> PromptStream:
    prompts = [Prompt(i, np.array([i], np.int32), f"{name}{i}", source=name) for i in range(count)]
    return PromptStream(prompts, 1, seed=len(name), repeat=repeat)


def mixture(repeat: bool = True, **weights) -> PromptMixture:
    sizes = dict(zip(weights, (5, 7, 3, 11), strict=False))
    return PromptMixture(
        [
            WeightedStream(
                name, stream_of(name, sizes[name], repeat), weight if isinstance(weight, tuple) else (weight,)
            )
            for name, weight in weights.items()
        ]
    )


def turns(shares: dict[str, Fraction], count: int) -> list[str]:
    counts, found = dict.fromkeys(shares, 0), []
    for _ in range(count):
        found.append(choose(shares, counts))
        counts[found[-1]] += 1
    return found


def shares_of(*weights: int) -> dict[str, Fraction]:
    return {f"s{i}": Fraction(weight, sum(weights)) for i, weight in enumerate(weights)}


@pytest.mark.parametrize("weights", [(1, 1), (2, 1), (7, 3), (97, 3), (1, 999), (5, 5, 5), (6, 3, 1), (50, 30, 19, 1)])
def test_counts_are_within_one_turn_of_the_shares(weights):
    shares, count = shares_of(*weights), 300
    order = turns(shares, count)
    bound = 1 - Fraction(1, 2 * len(weights) - 2)
    before = {name: [0] for name in shares}
    for turn in order:
        for name, counts in before.items():
            counts.append(counts[-1] + (name == turn))
    for name, share in shares.items():
        ahead = [counted - share * turn for turn, counted in enumerate(before[name])]
        assert max(map(abs, ahead)) <= bound < 1
        # any stretch: the difference of two beginnings
        assert max(ahead) - min(ahead) <= (1 if len(weights) == 2 else 2 * bound)


def test_random_shares():
    random = np.random.default_rng(0)
    for _ in range(200):
        shares = shares_of(*random.integers(1, 60, random.integers(2, 7)).tolist())
        counts = Counter()
        for turn, name in enumerate(turns(shares, 120), start=1):
            counts[name] += 1
            assert all(abs(counts[other] - share * turn) < 1 for other, share in shares.items())


def drawn(stream: PromptMixture, *counts: int, first: int = 0) -> list[list[str]]:
    return [[p.text for p in stream.next(n, iteration)] for iteration, n in enumerate(counts, start=first)]


@pytest.mark.parametrize("stop", range(1, 12))
def test_a_resume_at_any_prompt(stop):
    weights = {"math": 0.6, "code": 0.3, "chat": 0.1}
    whole = [text for [text] in drawn(mixture(**weights), *[1] * 40)]
    first = mixture(**weights)
    before = [text for [text] in drawn(first, *[1] * stop)]
    resumed = mixture(**weights)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + [text for [text] in drawn(resumed, *[1] * (40 - stop), first=stop)] == whole


@pytest.mark.parametrize("count", range(1, 6))
def test_what_is_given_back_comes_again(count):
    stream, expected = mixture(a=2, b=1), drawn(mixture(a=2, b=1), 12)[0]
    assert drawn(stream, 6) == [expected[:6]]
    stream.give_back(count)
    assert drawn(stream, 3, 3 + count, first=0) == [expected[6 - count : 9 - count], expected[9 - count :]]


def names(prompts: list[list[str]]) -> list[Counter]:
    return [Counter(text.rstrip("0123456789") for text in iteration) for iteration in prompts]


def test_a_curriculum_by_iteration():
    found = names(drawn(mixture(easy=(1, 1, 0), hard=(0, 1, 1, 3)), 4, 4, 4, 4, 4))
    assert found == [{"easy": 4}, {"easy": 2, "hard": 2}, {"hard": 4}, {"hard": 4}, {"hard": 4}]


def test_new_weights_hold_at_once_and_prompts_go_on():
    first = mixture(a=9, b=1)
    seen = drawn(first, 20)
    resumed = mixture(a=1, b=1, c=2)
    resumed.load_state_dict(first.state_dict())
    [after] = drawn(resumed, 8, first=1)
    assert names([after]) == [{"a": 2, "b": 2, "c": 4}]
    only_a = PromptStream([Prompt(i, np.array([i]), f"a{i}") for i in range(5)], 1, seed=1)
    in_order = [p.text for p in only_a.next(20)]
    assert [text for text in seen[0] + after if text[0] == "a"] == in_order


def test_streams_that_end():
    stream = mixture(repeat=False, a=1, b=1)  # 5 and 7 prompts
    first, second, third = drawn(stream, 6, 5, 5)
    assert names([first, second]) == [{"a": 3, "b": 3}, {"a": 2, "b": 3}]
    assert names([third]) == [{"b": 1}] and len({*first, *second, *third}) == 12
    with pytest.raises(ConfigError, match=r"iteration 3: data.sources has no prompt left"):
        stream.next(1, 3)
    stream.load_state_dict(stream.state_dict())
    with pytest.raises(ConfigError, match="no prompt left"):
        stream.next(1, 3)


def test_orders_of_sources_do_not_depend_on_each_other():
    both, one = drawn(mixture(a=1, b=1), 40)[0], drawn(mixture(a=1), 20)[0]
    assert [text for text in both if text[0] == "a"] == one
