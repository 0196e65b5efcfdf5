"""The stream's order and its resume."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_megatron.data.prompt_stream import PromptStream
from sppo_megatron.errors import ConfigError
from sppo_megatron.types import Prompt

PINNED = [[7, 3, 0, 1, 4, 2, 5, 6], [0, 5, 6, 4, 2, 1, 7, 3]]


def make_prompts(n):
    return [Prompt(index=i, token_ids=np.array([i], dtype=np.int32)) for i in range(n)]


def drawn(stream, iterations):
    return [[prompt.index for prompt in stream.next()] for _ in range(iterations)]


@settings(deadline=None)
@given(
    n=st.integers(1, 12),
    per_iteration=st.integers(1, 12),
    seed=st.integers(0, 2**64 - 1),
    shuffle=st.booleans(),
    before=st.integers(0, 9),
)
def test_a_resumed_stream_continues_exactly_and_epochs_are_whole(n, per_iteration, seed, shuffle, before):
    per_iteration = min(per_iteration, n)
    whole = drawn(PromptStream(make_prompts(n), per_iteration, seed, shuffle), 15)

    interrupted = PromptStream(make_prompts(n), per_iteration, seed, shuffle)
    drawn(interrupted, before)
    state = json.loads(json.dumps(interrupted.state_dict()))
    assert state == {"position": before * per_iteration}
    resumed = PromptStream(make_prompts(n), per_iteration, seed, shuffle)
    resumed.load_state_dict(state)
    assert drawn(resumed, 15 - before) == whole[before:]

    flat = [index for iteration in whole for index in iteration]
    for start in range(0, len(flat) - n + 1, n):
        assert sorted(flat[start : start + n]) == list(range(n))
        if not shuffle:
            assert flat[start : start + n] == list(range(n))


def test_epochs_and_seeds_differ():
    first, second = drawn(PromptStream(make_prompts(50), 50, seed=1), 2)
    (other,) = drawn(PromptStream(make_prompts(50), 50, seed=2), 1)
    assert first != second
    assert first != other
    assert first != sorted(first)


def test_the_order_is_pinned():
    """Checkpoints hold a position only: an order that changes breaks every resume."""
    assert drawn(PromptStream(make_prompts(8), 8, seed=1234), 2) == PINNED


def test_the_order_is_the_same_in_another_process():
    code = (
        "import numpy as np\nfrom sppo_megatron.data.prompt_stream import PromptStream\n"
        "from sppo_megatron.types import Prompt\n"
        "stream = PromptStream([Prompt(i, np.array([i])) for i in range(8)], 8, seed=1234)\n"
        "print([[p.index for p in stream.next()] for _ in range(2)])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == PINNED


@pytest.mark.parametrize(
    ("n", "per_iteration", "seed", "message"),
    [
        (0, 1, 0, "data set is empty"),
        (3, 4, 0, "prompts_per_iteration=4 is more than the 3 prompts"),
        (3, 0, 0, "at least 1"),
        (3, 1, -1, "seed"),
    ],
)
def test_what_cannot_work_is_said_at_construction(n, per_iteration, seed, message):
    with pytest.raises(ConfigError, match=message):
        PromptStream(make_prompts(n), per_iteration, seed)


def test_a_negative_position_is_refused():
    with pytest.raises(ValueError, match="position"):
        PromptStream(make_prompts(3), 1, 0).load_state_dict({"position": -1})
