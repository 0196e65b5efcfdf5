"""Digests: equal for what is the same, another one for any change."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from sppo_megatron.data.digests import file_digest, model_digest, prompts_digest
from sppo_megatron.types import Prompt

PROMPT = Prompt(3, np.array([1, 2], np.int32), "one", "two", np.array([5], np.int32))


def test_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"some bytes")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"some bytes").hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"index": 4},
        {"token_ids": np.array([1, 3], np.int32)},
        {"text": None},
        {"answer": ""},
        {"human_token_ids": None},
        {"messages": [{"role": "user", "content": "one"}]},
        {"extra": {"difficulty": 2}},
        {"source": "math"},
    ],
)
def test_of_prompts(change):
    same = replace(PROMPT, token_ids=PROMPT.token_ids.copy())
    assert prompts_digest([PROMPT]) == prompts_digest([same])
    assert prompts_digest([PROMPT]) != prompts_digest([replace(PROMPT, **change)])
    assert prompts_digest([PROMPT, replace(PROMPT, **change)]) != prompts_digest([replace(PROMPT, **change), PROMPT])


def test_of_a_model(tmp_path):
    """A copy is the same model; weights of the same size with a difference anywhere are not."""
    weights = np.random.default_rng(0).bytes(9_000_000)
    others = {
        "same": weights,
        "first": b"\0" + weights[1:],
        "last": weights[:-1] + b"\0",
        "trained": np.random.default_rng(1).bytes(9_000_000),
        "longer": weights + b"\0",
    }
    for name, content in {"start": weights, **others}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
        (tmp_path / name / "config.json").write_text("{}")
    digests = {path.name: model_digest(path) for path in tmp_path.iterdir()}
    assert digests.pop("same") == digests["start"]
    assert len(set(digests.values())) == 5
    (tmp_path / "start" / "config.json").write_text("{ }")
    assert model_digest(tmp_path / "start") != digests["start"]
