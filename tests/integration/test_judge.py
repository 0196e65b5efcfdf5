"""A real vLLM server as the judge: its preferences are those of the same model under plain transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from sppo_megatron.batch.targets import build_targets
from sppo_megatron.config import JudgeConfig
from sppo_megatron.objective.sppo import Sppo
from sppo_megatron.rewards.judge import Judge
from sppo_megatron.rewards.text import JUDGE_TEMPLATE
from sppo_megatron.types import Group, Prompt, Response
from tests.installed import needs_vllm
from tests.integration.tiny_judge import JudgeServer, conversation, make_tokenizer, save_judge

pytestmark = needs_vllm

TEXTS = ["4821", "1284", "12", "a longer answer"]


def plain_first_wins(model, tokenizer, prompt: str, first: str, second: str) -> float:
    with torch.no_grad():
        log_probs = model(conversation(tokenizer, prompt, first, second)).logits[0, -1].log_softmax(0)
    a, b = (float(log_probs[tokenizer.convert_tokens_to_ids(letter)].exp()) for letter in "AB")
    return a / (a + b)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def server(folder: Path):
    judge = JudgeServer(folder)
    try:
        yield judge.wait()
    finally:
        judge.stop()


def make_groups(prompts: list[str]) -> list[Group]:
    ids = np.array([1], dtype=np.int32)
    return [Group(Prompt(i, ids, text), [Response(ids, text) for text in TEXTS]) for i, text in enumerate(prompts)]


def test_preferences_are_the_models(folder: Path, server: str, tmp_path: Path) -> None:
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder).eval(), make_tokenizer()
    prompts = ["Reverse 4821.", "Double 12."]
    config = JudgeConfig(urls=[server], cache_path=str(tmp_path / "cache.sqlite"))
    judge = Judge(config)
    groups = judge.score(make_groups(prompts))
    for prompt, group in zip(prompts, groups, strict=True):
        assert np.array_equal(group.preference + group.preference.T, np.ones((4, 4)))
        p = np.array([[plain_first_wins(model, tokenizer, prompt, a, b) for b in TEXTS] for a in TEXTS])
        expected = (p + 1 - p.T) / 2
        np.fill_diagonal(expected, 0.5)
        np.testing.assert_allclose(group.preference, expected, atol=2e-5)
        assert np.abs(p + p.T - 1).max() > 0.01, "this judge prefers a place, so one order alone would be wrong"
    assert judge.metrics["judge_requests"] == 2 * 4 * 3 and judge.metrics["judge_failed"] == 0
    assert judge.metrics["judge_completion_tokens"] == 2 * 4 * 3
    assert judge.metrics["judge_prompt_tokens"] > 24 * len(JUDGE_TEMPLATE) * 0.9
    targets = build_targets(groups, Sppo(eta=2.0, reward="win_rate"))
    rates = np.stack([group.preference.mean(axis=1) for group in groups]).reshape(-1)
    np.testing.assert_allclose(targets.target.numpy(), 2 * (rates - 0.5), atol=1e-6)
    judge.close()

    again = Judge(config)
    repeated = again.score(make_groups(prompts))
    assert again.metrics["judge_requests"] == 0 and again.metrics["judge_cache_hits"] == 24
    assert all(np.array_equal(a.preference, b.preference) for a, b in zip(groups, repeated, strict=True))
    again.close()


def test_letters_alone(folder: Path, server: str) -> None:
    """Without log-probs each order counts 0 or 1, as the more probable letter says."""
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder).eval(), make_tokenizer()
    [group] = Judge(JudgeConfig(urls=[server], logprobs=False)).score(make_groups(["Reverse 4821."]))
    p = np.array([[plain_first_wins(model, tokenizer, "Reverse 4821.", a, b) > 0.5 for b in TEXTS] for a in TEXTS])
    expected = (p + 1.0 - p.T) / 2
    np.fill_diagonal(expected, 0.5)
    np.testing.assert_array_equal(group.preference, expected)


def test_a_pair_too_long_for_the_judge_is_a_tie(server: str) -> None:
    """The server refuses it; the others are judged."""
    groups = make_groups(["Reverse 4821."])
    groups[0].responses[1] = replace(groups[0].responses[1], text="x" * 2000)
    judge = Judge(JudgeConfig(urls=[server]))
    [group] = judge.score(groups)
    assert judge.metrics["judge_failed"] == 6 and judge.metrics["judge_requests"] == 12
    assert group.preference[1].tolist() == [0.5] * 4
    assert all("answered 400" in response.error for response in group.responses)
    assert group.preference[0, 2] != 0.5
