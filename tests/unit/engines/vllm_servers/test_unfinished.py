"""Samples kept over the death of the last server: for the very same request only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sppo_megatron.engines.base import Continuation, Request
from sppo_megatron.engines.vllm_servers.unfinished import Unfinished, request_key
from sppo_megatron.types import SamplingParams

REQUEST = Request(np.array([3, 4, 5], np.int32), (1, 2, 0), 2)
PARAMS = SamplingParams(16, stop_token_ids=frozenset([1, 9]))
WEIGHTS = "version 3, 5 tensors, 100 bytes, checksum 0f"


def sample(*token_ids: int) -> Continuation:
    log_probs = -np.arange(1, len(token_ids) + 1, dtype=np.float32) / 3
    return Continuation(np.array(token_ids, np.int32), log_probs, "stop", 3)


CHANGES = {
    "another prompt in the same place": lambda: (replace(REQUEST, token_ids=np.array([3, 4, 6], np.int32)), PARAMS),
    "a longer prompt": lambda: (replace(REQUEST, token_ids=np.array([3, 4, 5, 0], np.int32)), PARAMS),
    "another place": lambda: (replace(REQUEST, seed=(1, 2, 1)), PARAMS),
    "another iteration": lambda: (replace(REQUEST, seed=(1, 3, 0)), PARAMS),
    "another seed": lambda: (replace(REQUEST, seed=(7, 2, 0)), PARAMS),
    "another number of samples": lambda: (replace(REQUEST, num_samples=3), PARAMS),
    "another limit": lambda: (REQUEST, replace(PARAMS, max_new_tokens=17)),
    "a limit of its own": lambda: (replace(REQUEST, max_new_tokens=5), PARAMS),
    "another temperature": lambda: (REQUEST, replace(PARAMS, temperature=0.5)),
    "another top_p": lambda: (REQUEST, replace(PARAMS, top_p=0.5)),
    "another top_k": lambda: (REQUEST, replace(PARAMS, top_k=5)),
    "other stop tokens": lambda: (REQUEST, replace(PARAMS, stop_token_ids=frozenset([1]))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whoever_asks_for_something_else_has_another_key(change):
    assert request_key(*CHANGES[change](), WEIGHTS) != request_key(REQUEST, PARAMS, WEIGHTS)


def test_other_weights_have_another_key():
    assert request_key(REQUEST, PARAMS, WEIGHTS + "1") != request_key(REQUEST, PARAMS, WEIGHTS)


def test_the_same_request_has_the_same_key():
    again = Request(np.array([3, 4, 5], np.int64), (1, 2, 0), 2)
    assert request_key(again, replace(PARAMS, stop_token_ids=frozenset([9, 1])), WEIGHTS) == request_key(
        REQUEST, PARAMS, WEIGHTS
    )


def test_through_the_file_bitwise(tmp_path):
    unfinished = Unfinished(tmp_path / "rollouts" / "unfinished.jsonl")
    assert unfinished.read() == {}
    unfinished.add({"a": [sample(5, 6), sample(7)]})
    unfinished.add({"b": [sample(8)]})
    kept = unfinished.read()
    assert list(kept) == ["a", "b"]
    for found, expected in zip(kept["a"], [sample(5, 6), sample(7)], strict=True):
        assert found.token_ids.tolist() == expected.token_ids.tolist()
        assert found.log_probs.tobytes() == expected.log_probs.tobytes()
        assert (found.finish_reason, found.weight_version) == ("stop", 3)
    unfinished.remove(["a", "unknown"])
    assert list(unfinished.read()) == ["b"]
    unfinished.remove(["b"])
    assert [path.name for path in unfinished.path.parent.iterdir()] == []
